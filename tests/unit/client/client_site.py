"""One installation in this process: real TLS, real middleware, real tokens and envelopes, a model that doubles."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from sealane import telemetry
from sealane.auth.v1 import token_service_pb2 as token_pb
from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import NotFound, SealaneError, Unauthenticated, Unimplemented
from sealane.inference.v1 import sealed_inference_service_pb2 as sealed_pb
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceAnswer, InferenceCall, ModelDescription
from sealane.rpc import middleware, order, sync_server
from sealane.rpc.call import Call
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.loads import Load
from sealane.rpc.status import to_status
from sealane.scheduler.v1 import deployment_service_pb2, routing_service_pb2
from sealane.security import jws, statements, suites, tls
from sealane.security.keys import KeySet, Published
from sealane.security.opener import Opener
from sealane.security.tokens import ISSUER, Grant, TokenVerifier, issue
from sealane.tensors import Array, Signature, TensorSpec
from sealane.type.v1.manifest_pb2 import SealingPolicy

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
DEPLOYMENT = "projects/p/deployments/camera"
DIGEST = "sha256:" + "1" * 64
SECRET = "s3cret"


def certificate(directory: Path, *names: str) -> tls.PeerIdentity:
    """A self-signed certificate that is its own root."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = built.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return tls.store(directory, private, tls.Issued(pem, pem, "spiffe://sealane/test", {}))


class Partial:
    """A fake of a service that has only some of its methods."""

    def __getattr__(self, name: str) -> object:
        if name[:1].isupper() and not name.startswith("Watch"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self, request: Message, call: Call) -> Message:
        raise Unimplemented(f"the fake has no {call.method.name}")


class Auth(Partial):
    """TokenService with one account and one signing key."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.issued: list[token_pb.IssueTokenRequest] = []
        self.lifetime = 300
        self.failure: SealaneError | None = None

    @property
    def keys(self) -> dict[str, str]:
        raw = self.key.public_key().public_bytes_raw()
        return {jws.thumbprint(raw): jws.encode(raw)}

    def token(self, audience: str, thumbprint: str = "", scopes: tuple[str, ...] = ("infer", "models:read")) -> str:
        grant = Grant("camera", "camera@p", "p", audience, scopes, thumbprint)
        # A token of another lifetime is an old one: issued before, so that it ends sooner.
        return issue(grant, key=self.key, issuer=ISSUER, now=time.time() - (300 - self.lifetime))

    def IssueToken(self, request: token_pb.IssueTokenRequest, call: Call) -> token_pb.IssueTokenResponse:
        self.issued.append(request)
        if self.failure is not None:
            raise self.failure
        if request.client_secret != SECRET:
            raise Unauthenticated("client id or secret is wrong")
        return token_pb.IssueTokenResponse(access_token=self.token(request.audience, request.key_thumbprint))

    def GetJsonWebKeySet(self, request: token_pb.GetJsonWebKeySetRequest, call: Call) -> token_pb.JsonWebKeySet:
        return token_pb.JsonWebKeySet(keys=[token_pb.JsonWebKey(kid=kid, x=x) for kid, x in self.keys.items()])


class Routing(Partial):
    """RoutingService and ListDeployments over one route."""

    def __init__(self) -> None:
        self.route = routing_service_pb2.Route(deployment=DEPLOYMENT)
        self.seconds = (10.0, 100.0)
        self.resolved = 0
        self.failure: SealaneError | None = None

    def ResolveRoute(
        self, request: routing_service_pb2.ResolveRouteRequest, call: Call
    ) -> routing_service_pb2.RoutingLease:
        self.resolved += 1
        if self.failure is not None:
            raise self.failure
        if request.deployment != DEPLOYMENT:
            raise NotFound("no such deployment")
        lease = routing_service_pb2.RoutingLease(route=self.route)
        lease.refresh_time.FromNanoseconds(int((time.time() + self.seconds[0]) * 1e9))
        lease.expire_time.FromNanoseconds(int((time.time() + self.seconds[1]) * 1e9))
        return lease


class Deployments:
    """ListDeployments with one deployment."""

    def ListDeployments(self, request: object, call: Call) -> deployment_service_pb2.ListDeploymentsResponse:
        one = deployment_service_pb2.Deployment(name=DEPLOYMENT, model_version="projects/p/models/digits/versions/1")
        return deployment_service_pb2.ListDeploymentsResponse(deployments=[one])


class Worker:
    """A front that serves the doubling model, sealed too. Failures given to it are answered first, in order."""

    def __init__(self, node: str, auth: Auth) -> None:
        self.node = node
        self.auth = auth
        self.failures: list[SealaneError] = []
        self.inside: list[SealaneError] = []
        self.calls: list[Call] = []
        self.seen: list[dict[str, Array]] = []
        self.contexts: list[sealed_pb.GetSealingContextRequest] = []
        self.offered: list[Worker] = []
        self.policies: list[SealingPolicy] = []
        self.address = "127.0.0.1:1"
        self.deployment = DEPLOYMENT
        self.slow = 0.0
        self.load: Load | None = None
        self.attributes = {"tier": "edge", "zone": "site-a", "region": "eu", "pool": "p", "clearance": "restricted"}
        self.restart()

    def candidate(self) -> sealed_pb.SealingCandidate:
        """This worker as somebody to seal to."""
        return sealed_pb.SealingCandidate(
            statement=self.statement(),
            variant_digest=DIGEST,
            address=self.address,
            tls_name="ignored",
            policies=self.policies,
        )

    def restart(self) -> None:
        """A new sealing key, as after a process start."""
        self.pair = suites.generate(suites.X25519)
        self.opener = Opener(self.pair, SystemClock())

    def statement(self, key: Ed25519PrivateKey | None = None) -> str:
        return statements.issue(
            node=self.node,
            suite=self.pair.suite,
            public_key=self.pair.public_key,
            attributes=self.attributes,
            key=key or self.auth.key,
            now=time.time(),
        )

    def run(self, inference: InferenceCall) -> InferenceAnswer:
        SIGNATURE.check_inputs(inference.inputs)
        self.seen.append(dict(inference.inputs))
        return InferenceAnswer(inference, "1", "serving_default", {"y": inference.inputs["x"] * 2})

    def note(self, call: Call) -> None:
        self.calls.append(call)
        call.load = self.load
        time.sleep(self.slow)
        if self.failures:
            raise self.failures.pop(0)

    def ModelInfer(self, request: oip.ModelInferRequest, call: Call) -> oip.ModelInferResponse:
        self.note(call)
        return openinference.encode_response(self.run(openinference.decode_request(request)))

    def ModelMetadata(self, request: oip.ModelMetadataRequest, call: Call) -> oip.ModelMetadataResponse:
        return openinference.encode_metadata(ModelDescription(request.name, ("1",), "test", (SIGNATURE,)))

    def Predict(self, request: tfs.PredictRequest, call: Call) -> tfs.PredictResponse:
        self.note(call)
        return tfserving.encode_response(self.run(tfserving.decode_request(request)))

    def GetSealingContext(self, request: sealed_pb.GetSealingContextRequest, call: Call) -> sealed_pb.SealingContext:
        self.contexts.append(request)
        candidates = [worker.candidate() for worker in self.offered or (self,)]
        return sealed_pb.SealingContext(deployment=self.deployment, candidates=candidates)

    def OpenSealedSession(
        self, request: sealed_pb.OpenSealedSessionRequest, call: Call
    ) -> sealed_pb.OpenSealedSessionResponse:
        self.note(call)
        opened = self.opener.open_session(request.envelope, call.caller, DIGEST)
        told = sealed_pb.SealedSession(lifetime_seconds=600, max_requests=10_000)
        return sealed_pb.OpenSealedSessionResponse(answer=opened.seal(b"\x00" + told.SerializeToString()))

    def SealedInferStream(
        self, requests: Iterator[sealed_pb.SealedInferStreamRequest], call: Call
    ) -> Iterator[sealed_pb.SealedInferStreamResponse]:
        first = sealed_pb.OpenSealedSessionRequest(envelope=next(requests).request)
        yield sealed_pb.SealedInferStreamResponse(answer=self.OpenSealedSession(first, call).answer)
        for message in requests:
            yield sealed_pb.SealedInferStreamResponse(answer=self.SealedInfer(message.request, call))

    def SealedInfer(self, request: sealed_pb.SealedInferRequest, call: Call) -> sealed_pb.SealedInferResponse:
        self.note(call)
        opened = self.opener.open(request, call.caller, DIGEST)
        if opened.end:
            return opened.seal(b"\x00")
        if self.inside:
            return opened.seal(b"\x01" + to_status(self.inside.pop(0)).SerializeToString())
        if opened.method.endswith("/Predict"):
            call_ = tfserving.decode_request(tfs.PredictRequest.FromString(opened.plaintext))
            return opened.seal(b"\x00" + tfserving.encode_response(self.run(call_)).SerializeToString())
        inference = openinference.decode_request(oip.ModelInferRequest.FromString(opened.plaintext))
        return opened.seal(b"\x00" + openinference.encode_response(self.run(inference)).SerializeToString())


class Listener:
    """One TLS port with the real middleware; it can be closed and opened again on the same port."""

    def __init__(self, identity: tls.PeerIdentity, served: list[Served], audience: str, auth: Auth) -> None:
        keys = KeySet(lambda: Published(auth.keys))
        verifier = TokenVerifier(keys, issuer=ISSUER, audience=audience, clock=SystemClock())
        chain = order.standard(telemetry_=telemetry.disabled(), guard=order.Guard(verifier))
        self._identity = identity
        self._make: Callable[[], grpc.Server] = lambda: sync_server.build(
            Dispatcher(served, middleware.Chain(chain)), threads=8
        )
        self.port = 0
        self.open()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def open(self) -> None:
        self.server = self._make()
        credentials = tls.server_credentials(self._identity, mesh=False)
        self.port = self.server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        self.server.start()

    def close(self) -> None:
        self.server.stop(None).wait()


class Only:
    """A servicer with some methods of a service; the others are never called."""

    def __init__(self, *parts: object) -> None:
        self._parts = parts

    def __getattr__(self, name: str) -> object:
        for part in self._parts:
            if hasattr(part, name):
                return getattr(part, name)

        def absent(request: object, call: Call) -> object:
            raise NotImplementedError(name)

        return absent
