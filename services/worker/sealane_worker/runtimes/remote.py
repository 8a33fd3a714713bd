"""A model behind another inference server: Open Inference Protocol (Triton) or TensorFlow Serving, over gRPC.

The variant is a file ``remote.json`` (:mod:`sealane.protocols.remote_model`). It names an endpoint; where that is says
the worker's operator, in the setting ``SEALANE_WORKER_ENDPOINTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import FailedPrecondition, Internal, InvalidArgument
from sealane.protocols import openinference, remote_model, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.protocols.foreign import foreign_path
from sealane.protocols.remote_model import RemoteModel
from sealane.rpc import limits
from sealane.rpc.status import from_rpc_error
from sealane.tensors import NUMPY_OF, Array, Signature
from sealane_worker.runtimes import RuntimeInfo, RuntimeOptions

SETTING = "SEALANE_WORKER_ENDPOINTS"
METADATA_SECONDS = 10.0
RUN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is.

    Attributes:
        address: ``host:port``.
        ca: root certificates, PEM; None speaks plain text, for a server on the same machine or a private network.
        timeout: longest time of one run in seconds.
    """

    address: str
    ca: bytes | None = None
    timeout: float = RUN_SECONDS


class _Server(Protocol):
    """One protocol's way to describe and to run a model."""

    def describe(self) -> tuple[Signature, ...]: ...

    def run(self, call: InferenceCall) -> dict[str, Array]: ...


def read_remote(path: Path) -> RemoteModel:
    """What the file at `path`, or in the folder `path`, says.

    Raises:
        FailedPrecondition: no such file, or not of that form (MODEL_UNREADABLE).
    """
    try:
        return remote_model.read(path if path.is_file() else path / remote_model.FILE_NAME)
    except InvalidArgument as error:
        raise FailedPrecondition(error.message, reason="MODEL_UNREADABLE") from error


def find_endpoint(name: str, settings: Mapping[str, str]) -> Endpoint:
    """Where the operator says that `name` is: ``host:port``, ``host:port,ca=/path.pem,timeout=5``.

    Raises:
        FailedPrecondition: the operator names no such endpoint (ENDPOINT_UNKNOWN), or not in that form.
    """
    told = settings.get(f"endpoint.{name}", "")
    if not told:
        known = sorted(key.removeprefix("endpoint.") for key in settings if key.startswith("endpoint."))
        raise FailedPrecondition(
            f"endpoint {name!r} is unknown to this worker, it knows {known or 'none'}; "
            f"its operator names endpoints in {SETTING}",
            reason="ENDPOINT_UNKNOWN",
        )
    address, *rest = told.split(",")
    options = dict(item.partition("=")[::2] for item in rest)
    try:
        host, _, port = address.rpartition(":")
        if not host or not 0 < int(port) < 65536 or not set(options) <= {"ca", "timeout"}:
            raise ValueError
        ca = Path(options["ca"]).read_bytes() if "ca" in options else None
        return Endpoint(address, ca, float(options.get("timeout", RUN_SECONDS)))
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"endpoint {name!r} is not host:port[,ca=/path.pem][,timeout=seconds] with a readable file; "
            f"its operator corrects it in {SETTING}",
            reason="ENDPOINT_INVALID",
        ) from error


class RemoteRuntime:
    """Passes every run on to the server."""

    def __init__(self) -> None:
        self._channel: grpc.Channel | None = None
        self._server: _Server | None = None
        self._outputs: dict[str, tuple[str, ...]] = {}
        self._target = Target("")

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Dial the server and ask it for the model's signatures; see :class:`sealane_worker.runtimes.Runtime`."""
        model = read_remote(path)
        endpoint = find_endpoint(model.endpoint, options.settings)
        self._target = Target(model.model, model.version)
        self._channel = _dial(endpoint)
        self._server = _SERVERS[model.protocol](self._channel, self._target, endpoint.timeout)
        try:
            signatures = self._server.describe()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except InvalidArgument as error:
            raise FailedPrecondition(error.message, reason="MODEL_SIGNATURES") from error
        _check(signatures)
        self._outputs = {item.name: tuple(spec.name for spec in item.outputs) for item in signatures}
        return signatures

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """One inference; the server's errors come back as the same kinds."""
        if self._server is None:
            raise FailedPrecondition("the model is closed; load it again")
        target = Target(self._target.model, self._target.version, signature=signature_name)
        call = InferenceCall(target, inputs)
        try:
            outputs = self._server.run(call)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        wanted = self._outputs[signature_name]
        if missing := sorted(set(wanted) - outputs.keys()):
            raise Internal(f"the endpoint answered without the outputs {missing}; look at its own model's log")
        return {name: outputs[name] for name in wanted}

    def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._channel.close()
        self._channel = self._server = None


class _OpenInference:
    """Triton and every other server of the Open Inference Protocol."""

    SERVICE = "sealane.compat.openinference.v2.GRPCInferenceService"

    def __init__(self, channel: grpc.Channel, target: Target, timeout: float) -> None:
        self._target, self._timeout = target, timeout
        self._metadata: grpc.UnaryUnaryMultiCallable[oip.ModelMetadataRequest, oip.ModelMetadataResponse]
        self._metadata = channel.unary_unary(
            foreign_path(f"/{self.SERVICE}/ModelMetadata"),
            request_serializer=oip.ModelMetadataRequest.SerializeToString,
            response_deserializer=oip.ModelMetadataResponse.FromString,
        )
        self._infer: grpc.UnaryUnaryMultiCallable[oip.ModelInferRequest, oip.ModelInferResponse]
        self._infer = channel.unary_unary(
            foreign_path(f"/{self.SERVICE}/ModelInfer"),
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )

    def describe(self) -> tuple[Signature, ...]:
        request = oip.ModelMetadataRequest(name=self._target.model, version=self._target.version)
        return openinference.decode_metadata(self._metadata(request, timeout=METADATA_SECONDS)).signatures

    def run(self, call: InferenceCall) -> dict[str, Array]:
        request = openinference.encode_request(call)
        response = self._infer(request, timeout=self._timeout)
        return _decoded(lambda: openinference.decode_response(response))


class _TensorFlowServing:
    """TensorFlow Serving."""

    SERVICE = "sealane.compat.tfserving.v1.PredictionService"

    def __init__(self, channel: grpc.Channel, target: Target, timeout: float) -> None:
        self._target, self._timeout = target, timeout
        self._metadata: grpc.UnaryUnaryMultiCallable[tfs.GetModelMetadataRequest, tfs.GetModelMetadataResponse]
        self._metadata = channel.unary_unary(
            foreign_path(f"/{self.SERVICE}/GetModelMetadata"),
            request_serializer=tfs.GetModelMetadataRequest.SerializeToString,
            response_deserializer=tfs.GetModelMetadataResponse.FromString,
        )
        self._predict: grpc.UnaryUnaryMultiCallable[tfs.PredictRequest, tfs.PredictResponse]
        self._predict = channel.unary_unary(
            foreign_path(f"/{self.SERVICE}/Predict"),
            request_serializer=tfs.PredictRequest.SerializeToString,
            response_deserializer=tfs.PredictResponse.FromString,
        )

    def describe(self) -> tuple[Signature, ...]:
        request = tfs.GetModelMetadataRequest(metadata_field=[tfserving.METADATA_FIELD])
        request.model_spec.name = self._target.model
        if self._target.version:
            request.model_spec.version.value = int(self._target.version)
        signatures = tfserving.decode_metadata(self._metadata(request, timeout=METADATA_SECONDS)).signatures
        return tuple(item for item in signatures if item.name != "__saved_model_init_op")

    def run(self, call: InferenceCall) -> dict[str, Array]:
        response = self._predict(tfserving.encode_request(call), timeout=self._timeout)
        return _decoded(lambda: tfserving.decode_response(response))


_SERVERS: Mapping[str, Callable[[grpc.Channel, Target, float], _Server]] = {
    "oip": _OpenInference,
    "tfserving": _TensorFlowServing,
}

RUNTIME = RuntimeInfo(
    name="remote",
    formats=("REMOTE",),
    package="grpc",
    distributions=("grpcio",),
    install="sealane[worker]",
    create=RemoteRuntime,
    network=True,
)


def _dial(endpoint: Endpoint) -> grpc.Channel:
    if endpoint.ca is None:
        return grpc.insecure_channel(endpoint.address, options=limits.channel())
    return grpc.secure_channel(endpoint.address, grpc.ssl_channel_credentials(endpoint.ca), options=limits.channel())


def _check(signatures: tuple[Signature, ...]) -> None:
    if not signatures:
        raise FailedPrecondition("the endpoint's model has no signature; export it with one", reason="MODEL_SIGNATURES")
    for signature in signatures:
        for spec in (*signature.inputs, *signature.outputs):
            if spec.datatype not in NUMPY_OF:
                raise FailedPrecondition(
                    f"tensor {spec.name!r} of the endpoint's model is {spec.datatype!r}, which no protocol carries; "
                    "serve another model",
                    reason="MODEL_SIGNATURES",
                )


def _decoded(decode: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """The outputs of a server; where they are malformed it is not the caller's fault."""
    try:
        return decode()
    except InvalidArgument as error:
        raise Internal("the endpoint answered with malformed tensors; look at its own log") from error
