"""A caller with bad manners: makes the requests that must be refused."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.auth.v1 import token_service_pb2 as token_pb
from sealane.auth.v1 import token_service_pb2_grpc
from sealane.client.prediction import INFER_PATH
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.inference.v1 import sealed_inference_service_pb2_grpc
from sealane.rpc.channel import Target, connect
from sealane.security import envelope, jws, statements
from sealane.security.enroll import fetch_keys
from sealane.security.keys import KeySet
from sealane.security.proof import prove

Metadata = tuple[tuple[str, str | bytes], ...]
_CONTEXT = "/sealane.inference.v1.SealedInferenceService/GetSealingContext"


@dataclass(frozen=True, slots=True)
class BoundToken:
    """A token and the key it is bound to."""

    token: str
    key: Ed25519PrivateKey

    def proved(self, method_path: str) -> Metadata:
        """Metadata of a call by the rightful holder."""
        proof = prove(self.key, method_path=method_path, token=self.token, now=time.time())
        return (("authorization", f"DPoP {self.token}"), ("dpop", proof))


class Attacker:
    """Speaks to auth and the gateway over raw stubs."""

    def __init__(self, auth: Target, gateway: Target) -> None:
        self._auth = auth
        self._tokens = token_service_pb2_grpc.TokenServiceStub(connect(auth))
        self._sealed = sealed_inference_service_pb2_grpc.SealedInferenceServiceStub(connect(gateway))

    def bound_token(self, client_id: str, client_secret: str) -> BoundToken:
        """A key-bound token, honestly come by."""
        key = Ed25519PrivateKey.generate()
        issued = self._tokens.IssueToken(
            token_pb.IssueTokenRequest(
                grant_type="client_credentials",
                client_id=client_id,
                client_secret=client_secret,
                audience="sealane-inference",
                key_thumbprint=jws.thumbprint(key.public_key().public_bytes_raw()),
            )
        )
        return BoundToken(issued.access_token, key)

    def seal(self, holder: BoundToken, deployment: str, plaintext: bytes, project: str) -> pb.SealedInferRequest:
        """A good sealed request of the holder."""
        context: pb.SealingContext = self._sealed.GetSealingContext(
            pb.GetSealingContextRequest(model=deployment), metadata=holder.proved(_CONTEXT)
        )
        keys = KeySet(fetch_keys(lambda: connect(self._auth)))
        chosen = context.candidates[0]
        statement = statements.verify(chosen.statement, keys)
        claims = jws.parse(holder.token, header_names=frozenset({"alg", "typ", "kid"})).claims
        bound = envelope.Bound(
            suite=statement.suite,
            project=project,
            deployment=context.deployment,
            method=INFER_PATH,
            request_id=os.urandom(16),
            token_id=str(claims["jti"]),
            issued_at_ms=int(time.time() * 1000),
        )
        target = envelope.Target(statement.key_id, statement.public_key, chosen.variant_digest)
        return envelope.seal(plaintext, bound, [target], holder.key).request

    def send(self, request: pb.SealedInferRequest, token: str) -> pb.SealedInferResponse:
        """Send a sealed request with a token."""
        return self._sealed.SealedInfer(request, metadata=(("authorization", f"DPoP {token}"),))

    def call_without_proof(self, token: str, deployment: str) -> pb.SealingContext:
        """Use a captured key-bound token as if it were a bearer token."""
        request = pb.GetSealingContextRequest(model=deployment)
        return self._sealed.GetSealingContext(request, metadata=(("authorization", f"Bearer {token}"),))


def tampered(request: pb.SealedInferRequest) -> pb.SealedInferRequest:
    """The same request with one bit of its ciphertext flipped."""
    altered = pb.SealedInferRequest()
    altered.CopyFrom(request)
    altered.chunks[0] = bytes([request.chunks[0][0] ^ 1]) + request.chunks[0][1:]
    return altered
