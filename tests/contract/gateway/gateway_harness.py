"""A real gateway on loopback with TLS on both ports, an authority that signs for it, and workers on lanes."""

from __future__ import annotations

import asyncio
import datetime
import json
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import SealaneError
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.inference.v1 import lane_service_pb2_grpc
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceAnswer, ModelDescription
from sealane.rpc.channel import Target, connect
from sealane.rpc.status import to_status
from sealane.security import jws, tls
from sealane.security.membership import Membership, Place
from sealane.security.tokens import ISSUER, Grant, issue
from sealane.tensors import Signature, TensorSpec
from sealane_inference import app
from sealane_inference.config import Config
from sealane_inference.present import Present
from sealane_inference.routing import Endpoint, Route, RouteTable

TLS_NAME = "inference.service.sealane"
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))
MODEL = ModelDescription("d", ("3",), "litert", (SIGNATURE,))
OIP = "/inference.GRPCInferenceService/"
PREDICTION = "/tensorflow.serving.PredictionService/"

Reply = Callable[[pb.CallFrame], pb.ReplyFrame | None]


class Authority:
    """Certificates and tokens for one test session."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.tokens = Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test root")])
        builder = self._builder(name, name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self._root = builder.sign(self._key, hashes.SHA256())
        self.pem = self._root.public_bytes(serialization.Encoding.PEM)

    def identity(self, directory: Path, spiffe_id: str, dns: str) -> tls.PeerIdentity:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.UniformResourceIdentifier(spiffe_id), x509.DNSName(dns)]
        builder = self._builder(x509.Name([]), self._root.subject, key).add_extension(
            x509.SubjectAlternativeName(names), critical=True
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        chain = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return tls.store(directory, private, tls.Issued(chain, self.pem, spiffe_id, {}))

    def token(self, *scopes: str, project: str = "p", thumbprint: str = "") -> str:
        grant = Grant("camera", "camera", project, app.AUDIENCE, scopes or ("infer",), thumbprint)
        return issue(grant, key=self.tokens, issuer=ISSUER, now=time.time())

    def jwks(self) -> str:
        public = self.tokens.public_key().public_bytes_raw()
        return json.dumps({jws.thumbprint(public): jws.encode(public)})

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )


class Gateway:
    """The real gateway in a thread; tables are given to it directly instead of by a scheduler."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.authority = authority
        self.directory = directory
        (directory / "jwks.json").write_text(authority.jwks())
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(authority.pem)
        identity = authority.identity(directory / "identity", "spiffe://sealane/service/inference", TLS_NAME)
        config = Config(directory, "127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1", self.ca_file)
        started: queue.Queue[None] = queue.Queue()

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            self.done = asyncio.Event()
            self.present = Present(SystemClock())
            place = Place(directory, "127.0.0.1:1", "127.0.0.1:1", self.ca_file)
            member = Membership(place, identity, app.AUDIENCE, SystemClock())
            gateway = app.build(config, member, self.present)
            self.ports = await gateway.start(identity)
            started.put(None)
            await self.done.wait()
            await gateway.stop()

        self.thread = threading.Thread(target=lambda: asyncio.run(serve()))
        self.thread.start()
        started.get(timeout=10)
        self.mesh = f"127.0.0.1:{self.ports['mesh']}"
        self.client = f"127.0.0.1:{self.ports['client']}"
        credentials = grpc.ssl_channel_credentials(authority.pem)
        self.channel = grpc.secure_channel(
            self.client, credentials, options=[("grpc.ssl_target_name_override", TLS_NAME)]
        )

    def routes(self, *routes: Route) -> None:
        """Replace the table and wait until it is used."""
        applied = threading.Event()

        def apply() -> None:
            self.present.replace(RouteTable.of(1, routes))
            applied.set()

        self.loop.call_soon_threadsafe(apply)
        assert applied.wait(5)

    def call(self, path: str, body: bytes, *, timeout: float = 10.0, **metadata: str) -> bytes:
        """One raw call, with a good token unless `authorization` says otherwise."""
        metadata.setdefault("authorization", f"Bearer {self.authority.token()}")
        sent = [(key.replace("_", "-"), value) for key, value in metadata.items() if value]
        answer: bytes = self.channel.unary_unary(path)(body, timeout=timeout, metadata=sent)
        return answer

    def stop(self) -> None:
        self.channel.close()
        self.loop.call_soon_threadsafe(self.done.set)
        self.thread.join(10)


class LaneWorker:
    """A worker with a lane and no model process: doubles its input."""

    def __init__(self, gateway: Gateway, node: str, answer: Reply | None = None) -> None:
        identity = gateway.authority.identity(
            gateway.directory / node, f"spiffe://sealane/node/{node}", f"{node}.node.sealane"
        )
        self.node = node
        self.calls: list[pb.CallFrame] = []
        self.received = threading.Event()
        self._gateway = gateway
        self._answer = answer or double
        self._replies: queue.Queue[pb.WorkerFrames | None] = queue.Queue()
        self._replies.put(pb.WorkerFrames(frames=[pb.WorkerFrame(hello=pb.HelloFrame(max_in_flight=32))]))
        self._channel = connect(
            Target(gateway.mesh, identity.trust_bundle, TLS_NAME, identity.private_key, identity.certificate_chain)
        )
        stub = lane_service_pb2_grpc.LaneServiceStub(self._channel)
        self._stream = stub.Open(iter(self._replies.get, None))
        threading.Thread(target=self._serve, daemon=True).start()
        wait_for(lambda: gateway.present.lane(node) is not None)

    def endpoint(self, key_id: str = "") -> Endpoint:
        return Endpoint(self.node, 1, key_id=key_id, statement="s" if key_id else "")

    def die(self) -> None:
        """Break the connection, as kill -9 does."""
        self._channel.close()
        self._replies.put(None)
        wait_for(lambda: self._gateway.present.lane(self.node) is None)

    def _serve(self) -> None:
        try:
            for frames in self._stream:
                for frame in frames.frames:
                    if frame.HasField("call"):
                        self._run(frame.call)
        except (SealaneError, grpc.RpcError, ValueError):
            pass  # the lane is over

    def _run(self, call: pb.CallFrame) -> None:
        self.calls.append(call)
        self.received.set()
        reply = self._answer(call)
        if reply is not None:
            reply.call_id = call.call_id
            self._replies.put(pb.WorkerFrames(frames=[pb.WorkerFrame(reply=reply)]))


def double(call: pb.CallFrame) -> pb.ReplyFrame:
    """What a worker's front does with a call, for the model y = 2 x."""
    try:
        return pb.ReplyFrame(payload=_run_method(call).SerializeToString())
    except SealaneError as error:
        return refuse(error)


def refuse(error: SealaneError) -> pb.ReplyFrame:
    status = to_status(error)
    return pb.ReplyFrame(code=status.code, message=status.message, status_details=status.SerializeToString())


def _run_method(
    call: pb.CallFrame,
) -> oip.ModelInferResponse | oip.ModelMetadataResponse | tfs.PredictResponse | tfs.GetModelMetadataResponse:
    if call.method == OIP + "ModelMetadata":
        return openinference.encode_metadata(MODEL)
    if call.method == PREDICTION + "GetModelMetadata":
        return tfserving.encode_metadata(MODEL, "3")
    if call.method == OIP + "ModelInfer":
        plain = openinference.decode_request(oip.ModelInferRequest.FromString(call.payload))
        openinference.check(plain, SIGNATURE)
    else:
        plain = tfserving.decode_request(tfs.PredictRequest.FromString(call.payload))
        tfserving.check(plain, SIGNATURE)
    doubled = np.asarray(plain.inputs["x"], dtype=np.float32) * 2
    answer = InferenceAnswer(plain, "3", "serving_default", {"y": doubled})
    if call.method == OIP + "ModelInfer":
        return openinference.encode_response(answer)
    return tfserving.encode_response(answer)


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)
