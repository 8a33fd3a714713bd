"""What must be refused: the right code, a message that says what to do, and nothing half done."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import grpc
import numpy as np
import pytest
from light_site import CAMERA_B, CLOUD, EDGE, MODEL, LightSite

from sealane.client import Client, StaticToken
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, SealaneError, Unauthenticated
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.registry.v1 import artifact_service_pb2 as artifact_pb
from sealane.registry.v1 import artifact_service_pb2_grpc, variant_service_pb2
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import model_service_pb2_grpc as model_grpc
from sealane.rpc.status import from_rpc_error
from sealane.security import tokens

pytestmark = pytest.mark.stack
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Way:
    """One protocol at one address, as a foreign client speaks it."""

    protocol: str
    address: str
    channel: grpc.Channel

    def send(self, call: InferenceCall, token: str) -> dict[str, np.ndarray]:
        """One call; the error that a client sees."""
        metadata: Metadata = (("authorization", f"Bearer {token}"),) if token else ()
        path, adapter = (INFER, openinference) if self.protocol == "oip" else (PREDICT, tfserving)
        answer_type = oip.ModelInferResponse if self.protocol == "oip" else tfs.PredictResponse
        body = adapter.encode_request(call).SerializeToString()
        try:
            answer = self.channel.unary_unary(path)(body, timeout=10, metadata=metadata)
        except grpc.RpcError as failure:
            raise from_rpc_error(failure) from failure
        return dict(adapter.decode_response(answer_type.FromString(answer)))


@pytest.fixture(scope="module", params=["oip-gateway", "tfs-gateway", "oip-worker", "tfs-worker"])
def way(request: pytest.FixtureRequest, site: LightSite) -> Iterator[Way]:
    protocol, _, place = request.param.partition("-")
    address = "inference" if place == "gateway" else EDGE
    with site.channel(address) as channel:
        yield Way(protocol, address, channel)


@pytest.fixture
def good(site: LightSite) -> InferenceCall:
    return InferenceCall(Target(CAMERA_B), site.image, ())


@pytest.fixture
def token(site: LightSite) -> str:
    return site.client.token("sealane-inference")


@pytest.fixture(autouse=True)
def nothing_half_done(site: LightSite) -> Iterator[None]:
    """Whatever was refused has left no model, version, deployment or copy behind."""

    def state() -> tuple[object, ...]:
        client = site.client
        models = sorted(item.name for item in client.models.list())
        versions = [item.name for item in client.models.versions(MODEL)]
        deployments = {item.name: site.places(item.name.rpartition("/")[2]) for item in client.deployments.list()}
        return models, versions, deployments, len(list(client.jobs.list())), len(list(client.accounts.list()))

    before = state()
    yield
    assert state() == before


def refused(error: type[SealaneError], says: str, attempt: Callable[[], object]) -> SealaneError:
    with pytest.raises(SealaneError, match=says) as failure:
        attempt()
    assert type(failure.value) is error, f"{failure.value.kind}: {failure.value.message}"
    return failure.value


def forged(site: LightSite, **changes: object) -> str:
    """A token with auth's own signature that auth would not issue."""
    now = changes.pop("now", time.time())
    grant = tokens.Grant("admin@default", "admin@default", "default", "sealane-inference", ("infer", "models:read"))
    return tokens.issue(replace(grant, **changes), key=site.signing_key, issuer=tokens.ISSUER, now=now)


def test_unknown_model(way: Way, good: InferenceCall, token: str) -> None:
    says = "Request for unknown model" if way.protocol == "oip" else r"Servable not found for request: Latest\(nobody\)"
    refused(NotFound, says, lambda: way.send(replace(good, target=Target("nobody")), token))
    assert way.send(good, token)["probabilities"].shape == (1, 10)


def test_unknown_version(way: Way, good: InferenceCall, token: str) -> None:
    refused(NotFound, "9", lambda: way.send(replace(good, target=Target(CAMERA_B, version="9")), token))
    assert way.send(replace(good, target=Target(CAMERA_B, version="1")), token)["probabilities"].shape == (1, 10)


def test_unknown_signature(way: Way, good: InferenceCall, token: str) -> None:
    if way.protocol == "oip":
        pytest.skip("the Open Inference Protocol has no word for signatures")
    call = replace(good, target=Target(CAMERA_B, signature="odd"))
    refused(FailedPrecondition, 'Serving signature key "odd" not found', lambda: way.send(call, token))
    assert way.send(good, token)["probabilities"].shape == (1, 10)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"image": np.zeros((1, 8, 8, 1), np.float64)}, "image.*FP64.*FP32|image.*DT_DOUBLE|image.*double"),
        ({"image": np.zeros((1, 8, 8, 1), np.int32)}, "image"),
        ({"image": np.zeros((1, 64), np.float32)}, "image.*1, 64.*reshape"),
        ({"picture": np.zeros((1, 8, 8, 1), np.float32)}, "picture.*image|image.*picture"),
        ({}, "image"),
    ],
    ids=["double", "integer", "shape", "name", "none"],
)
def test_wrong_inputs(
    way: Way, good: InferenceCall, token: str, inputs: dict[str, np.ndarray[object, object]], says: str
) -> None:
    refused(InvalidArgument, says, lambda: way.send(replace(good, inputs=inputs), token))
    assert way.send(good, token)["probabilities"].shape == (1, 10)


def test_unknown_output(way: Way, good: InferenceCall, token: str) -> None:
    refused(InvalidArgument, "odd", lambda: way.send(replace(good, outputs=("odd",)), token))


def test_expired_token(site: LightSite, way: Way, good: InferenceCall, token: str) -> None:
    expired = forged(site, now=time.time() - 1000)
    error = refused(Unauthenticated, "expired; get a new one", lambda: way.send(good, expired))
    assert error.reason == "TOKEN_EXPIRED"
    assert way.send(good, token)["probabilities"].shape == (1, 10)
    assert way.send(good, forged(site))["probabilities"].shape == (1, 10), "only its times were wrong"


def test_token_from_the_future(site: LightSite, way: Way, good: InferenceCall) -> None:
    early = forged(site, now=time.time() + 600)
    refused(Unauthenticated, "not valid yet; check the clocks", lambda: way.send(good, early))


def test_no_token_and_one_for_somebody_else(site: LightSite, way: Way, good: InferenceCall, token: str) -> None:
    refused(Unauthenticated, "get one from auth", lambda: way.send(good, ""))
    registry = site.client.token("sealane-registry")
    refused(Unauthenticated, "sealane-inference.*get a new one", lambda: way.send(good, registry))
    refused(Unauthenticated, "get a new", lambda: way.send(good, token[:-6] + "AAAAAA"))


def test_foreign_project_is_answered_as_an_absent_model(site: LightSite, way: Way, good: InferenceCall) -> None:
    stranger = forged(site, project="other")
    absent = refused(NotFound, ".", lambda: way.send(replace(good, target=Target("nobody")), stranger))
    foreign = refused(NotFound, ".", lambda: way.send(good, stranger))
    assert foreign.message.replace(CAMERA_B, "nobody") == absent.message
    assert foreign.reason == absent.reason


def test_foreign_project_in_the_control_plane(site: LightSite) -> None:
    audiences = [f"sealane-{name}" for name in ("registry", "scheduler", "inference")]
    scopes = ("infer", "models:read", "models:write", "deploy", "jobs:read", "jobs:cancel")
    texts = {audience: forged(site, audience=audience, project="other", scopes=scopes) for audience in audiences}
    with Client(site.endpoints, trust_bundle=site.trust, credentials=StaticToken(texts)) as stranger:
        ours = f"projects/default/models/{MODEL}"
        assert list(stranger.models.list()) == []
        assert list(stranger.deployments.list()) == []
        for attempt in (
            lambda: stranger.models.get(ours),
            lambda: stranger.models.get_version(f"{ours}/versions/1"),
            lambda: stranger.deployments.get(f"projects/default/deployments/{CAMERA_B}"),
            lambda: stranger.deployments.delete(f"projects/default/deployments/{CAMERA_B}"),
            lambda: stranger.inference.predict(CAMERA_B, site.image),
            lambda: stranger.inference.predict(CAMERA_B, site.image, via="direct"),
        ):
            refused(NotFound, "check the name|unknown model|list them", attempt)


@pytest.mark.parametrize("options", [{}, {"via": "direct"}, {"sealed": True}, {"via": "direct", "sealed": True}])
def test_the_sdk_says_what_to_do(site: LightSite, options: dict[str, object]) -> None:
    predict = site.client.inference.predict
    refused(NotFound, "nobody", lambda: predict("nobody", site.image, **options))
    wrong = {"image": np.zeros((1, 64), np.float32)}
    refused(InvalidArgument, "reshape it", lambda: predict(CAMERA_B, wrong, **options))
    double = {"image": np.zeros((1, 8, 8, 1), np.float64)}
    refused(InvalidArgument, "image", lambda: predict(CAMERA_B, double, **options))
    if "sealed" not in options:
        odd = {**options, "signature": "odd"}
        refused(FailedPrecondition, "odd", lambda: predict(CAMERA_B, site.image, **odd))
    assert predict(CAMERA_B, site.image, **options)["probabilities"].shape == (1, 10)


@pytest.mark.parametrize("name", ["registry", "scheduler"])
def test_expired_token_in_the_control_plane(site: LightSite, name: str) -> None:
    expired = forged(site, audience=f"sealane-{name}", now=time.time() - 1000)
    with Client(site.endpoints, trust_bundle=site.trust, credentials=StaticToken(expired)) as late:
        listing = {"registry": late.models.list, "scheduler": late.deployments.list}[name]
        refused(Unauthenticated, "expired; get a new one", lambda: list(listing()))


def test_uploads_that_are_cut_or_lie(site: LightSite) -> None:
    token = site.client.token("sealane-registry")
    metadata = (("authorization", f"Bearer {token}"),)
    with site.channel("registry") as channel:
        stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        content = os.urandom(1000)

        def upload(claimed: str, part: bytes) -> SealaneError:
            start = artifact_pb.StartUploadRequest(parent="projects/default", sha256=claimed, size_bytes=1000)
            name = stub.StartUpload(start, metadata=metadata).name
            chunk = artifact_pb.UploadChunksRequest(name=name, data=part)
            stub.UploadChunks(iter([chunk]), metadata=metadata)
            with pytest.raises(grpc.RpcError) as failure:
                stub.FinishUpload(artifact_pb.FinishUploadRequest(name=name), metadata=metadata)
            return from_rpc_error(failure.value)

        cut = upload(hashlib.sha256(content).hexdigest(), content[:600])
        assert isinstance(cut, FailedPrecondition) and "600" in cut.message and "send" in cut.message
        lie = hashlib.sha256(os.urandom(8)).hexdigest()
        wrong = upload(lie, content)
        assert isinstance(wrong, FailedPrecondition) and wrong.reason == "DIGEST_MISMATCH" and ";" in wrong.message
        for digest in (lie, hashlib.sha256(content).hexdigest()):
            request = artifact_pb.DownloadArtifactRequest(name=f"projects/default/artifacts/{digest}")
            with pytest.raises(grpc.RpcError) as failure:
                list(stub.DownloadArtifact(request, metadata=metadata))
            assert failure.value.code() is grpc.StatusCode.NOT_FOUND
        file = variant_service_pb2.ModelFile(path="a.tflite", sha256=lie, size_bytes=1000)
        version = site.client.models.get_version(f"{MODEL}@1")
        request = model_pb.CreateVersionRequest(
            parent=f"projects/default/models/{MODEL}",
            version=model_pb.Version(signatures=version.signatures),
            variant_id="litert-float",
            variant=variant_service_pb2.Variant(format=variant_service_pb2.FORMAT_LITERT, files=[file]),
        )
        with pytest.raises(grpc.RpcError) as failure:
            model_grpc.ModelServiceStub(channel).CreateVersion(request, metadata=metadata)
        assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_deployment_of_what_is_not_there(site: LightSite) -> None:
    create = site.client.deployments.create
    refused(NotFound, "9", lambda: create("ghost", f"{MODEL}@9"))
    refused(NotFound, "nothing", lambda: create("ghost", "nothing@1"))
    refused(InvalidArgument, "residency", lambda: create("ghost", f"{MODEL}@1", data_class="restricted"))
    refused(NotFound, CAMERA_B, lambda: site.client.jobs.get(CAMERA_B))


def test_direct_call_at_a_worker_that_does_not_serve_it(site: LightSite, good: InferenceCall, token: str) -> None:
    with site.channel(CLOUD) as channel:
        refused(NotFound, "unknown model", lambda: Way("oip", CLOUD, channel).send(good, token))
