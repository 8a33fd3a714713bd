"""Callers that seal, to a worker with a native front: over its port, or over a lane as a gateway does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import status_pb2
from native_site import INFER, PREDICT, NativeSite, parsed

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import openinference, sealed, tfserving
from sealane.protocols.call import InferenceCall
from sealane.rpc.call import Call, Cancellation, Peer
from sealane.rpc.status import from_rpc_error, from_status
from sealane.security import envelope, jws
from sealane.security.envelope import ANSWER, Bound, Sealed, Target
from sealane.security.sealed_session import ClientSession
from sealane.tensors import Array

#: Ways to a worker.
WAYS = ("direct", "lane")
#: A request by itself, or one of a session.
KINDS = ("alone", "session")


def variant(version: int = 1) -> str:
    """What :meth:`NativeSite.load` serves."""
    return f"sha256:{version:064x}"


@dataclass
class SealedCaller:
    """Seals with one key, and calls with one token that is bound to it."""

    site: NativeSite
    way: str = "direct"
    kind: str = "session"
    deployment: str = "digits"
    version: int = 1
    token: str = ""
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    facts: dict[str, object] = field(default_factory=dict)
    cancellation: Cancellation = field(default_factory=Cancellation)

    def __post_init__(self) -> None:
        thumbprint = jws.thumbprint(self.key.public_key().public_bytes_raw())
        self.token = self.token or f"token-{os.urandom(4).hex()}"
        self.site.tokens.add(self.token, key_thumbprint=thumbprint, **self.facts)
        self.channel: grpc.Channel = self.site.channel()
        self.session: ClientSession | None = None

    def bound(self, method: str) -> Bound:
        """What an envelope made now is bound to."""
        pair, name = self.site.sealing.pair, f"projects/p/deployments/{self.deployment}"
        return Bound(pair.suite, "p", name, method, os.urandom(16), self.token, int(time.time() * 1000))

    def target(self) -> Target:
        """The worker."""
        pair = self.site.sealing.pair
        return Target(pair.key_id, pair.public_key, variant(self.version))

    def open_session(self) -> ClientSession:
        """A new session."""
        session = ClientSession(self.bound(sealed.OPEN_SESSION), self.target(), self.key)
        body = pb.OpenSealedSessionRequest(envelope=session.opening.request).SerializeToString()
        answer = pb.OpenSealedSessionResponse.FromString(self.send(body, sealed.OPEN_SESSION)).answer
        assert session.opening.open(answer)[:1] == ANSWER
        self.session = session
        return session

    def seal(self, plaintext: bytes, method: str = INFER, *, end: bool = False) -> Sealed:
        """A request, by itself or under the session."""
        if self.kind == "alone":
            return envelope.seal(plaintext, self.bound(method), [self.target()], self.key)
        session = self.session or self.open_session()
        return session.seal(plaintext, method, self.token, int(time.time() * 1000), end=end)

    def send(self, wire: bytes, path: str = sealed.INFER, timeout: float = 10.0, **metadata: str) -> bytes:
        """Send bytes; raises SealaneError."""
        said = {"authorization": f"DPoP {self.token}", **{key.replace("_", "-"): v for key, v in metadata.items()}}
        if self.way == "lane":
            route = self.site.dispatcher.route(path)
            peer, deadline = Peer(via_gateway=True, tls_version="TLSv1.3"), time.monotonic() + timeout
            call = Call(route.method, said, peer, deadline, body=wire, watch=self.cancellation.watch)
            answer = self.site.dispatcher.unary(route, call)
            assert call.load is not None or path != sealed.INFER, "it says how busy the model is"
            return answer
        method: Callable[..., bytes] = self.channel.unary_unary(path)
        try:
            return method(wire, timeout=timeout, metadata=tuple(said.items()))
        except grpc.RpcError as failure:
            raise from_rpc_error(failure) from failure

    def exchange(self, sent: Sealed, **options: object) -> bytes:
        """The plaintext of the answer; raises what was refused, or failed inside the seal."""
        plaintext = bytes(sent.read(self.send(sent.wire, **options)))  # type: ignore[arg-type]
        if plaintext[:1] != ANSWER:
            raise from_status(status_pb2.Status.FromString(plaintext[1:]))
        return plaintext[1:]

    def infer(self, call: InferenceCall, **options: object) -> dict[str, Array]:
        """Over the Open Inference Protocol."""
        sent = self.seal(openinference.encode_request(call).SerializeToString())
        answer = parsed(oip.ModelInferResponse(), self.exchange(sent, **options))
        return openinference.decode_response(answer)  # type: ignore[arg-type]

    def predict(self, call: InferenceCall, **options: object) -> dict[str, Array]:
        """Over TensorFlow Serving."""
        sent = self.seal(tfserving.encode_request(call).SerializeToString(), PREDICT)
        return tfserving.decode_response(parsed(tfs.PredictResponse(), self.exchange(sent, **options)))  # type: ignore[arg-type]
