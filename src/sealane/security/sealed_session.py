"""Session mode of sealed payloads: one key agreement and one signature for many requests (docs/sealed-protocol.md).

Both halves derive the keys of a request from the session's secret and the request's number; everything that an envelope
is bound to, each request of a session is bound to as well.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.security import envelope, native_envelope
from sealane.security.envelope import KEY_BYTES, Bound, Open, Sealed, Target
from sealane.security.length_prefixed import lp
from sealane.security.native_envelope import NativeSession
from sealane.security.sealed_chunks import REQUEST, RESPONSE, ChunkCipher, chunk_count

LIFETIME_SECONDS = 600.0
MAX_REQUESTS = 10_000


class SessionHash:
    """What requests of a session to one deployment are bound to: hashed once, and then only what differs.

    Args:
        session_id: `request_id` of the envelope that opened it.
        suite: of the key that it was agreed with.
        key_id: of that key.
        project: of the token.
        deployment: resource name.
        variant_digest: of what the worker is to be serving.
        method: that the plaintext is a request of.
    """

    def __init__(
        self,
        session_id: bytes,
        *,
        suite: int,
        key_id: str,
        project: str,
        deployment: str,
        variant_digest: str,
        method: str,
    ) -> None:
        same = (envelope.VERSION, suite, key_id, project, deployment, variant_digest, method, session_id)
        self._begun = hashlib.sha256(lp("sealane/session-request/v1", *same))

    def digest(self, place: pb.SessionPlace, token_id: str, issued_at_ms: int, chunks: int) -> bytes:
        """SHA-256 over all that one request is bound to; the chunks are authenticated with it.

        Args:
            place: which request it is, and whether the last.
            token_id: of the token that it goes with; it may be another one than the session was opened with.
            issued_at_ms: when it was sealed.
            chunks: their number.
        """
        whole = self._begun.copy()
        whole.update(lp(place.counter, int(place.end), token_id, issued_at_ms, chunks))
        return whole.digest()


class SessionCiphers:
    """The two keys of a session: HKDF-Expand (RFC 5869 section 2.3) of its secret, which is random already.

    A request's number is in the nonces of its chunks and of its answer's: each number is used once, and each answer is
    sealed once, so that no nonce comes twice.
    """

    def __init__(self, secret: bytes, key_id: str, session_id: bytes) -> None:
        info = lp("sealane/session/v1", key_id, session_id)
        first = envelope.expanded(secret, info)
        second = hmac.digest(secret, first + info + b"\x02", "sha256")
        self.keys = first, second
        self.requests = ChunkCipher(first, REQUEST)
        self.answers = ChunkCipher(second, RESPONSE)


def prefix_of(counter: int) -> bytes:
    """How nonces of one request of a session begin."""
    return counter.to_bytes(4, "big")


def session_answer_opener(ciphers: SessionCiphers, digest: bytes, counter: int) -> Open:
    """Opens the answer to one request of a session."""

    def open_answer(response: pb.SealedInferResponse) -> bytes | bytearray:
        if response.nonce:
            raise InvalidTag
        return ciphers.answers.open(digest, list(response.chunks), prefix_of(counter))

    return open_answer


class ClientSession:
    """The client's half: seals requests to the one worker that keeps the session. May be used from any thread.

    Args:
        bound: what the opening envelope is bound to; its method says whether this is a session or a stream.
        target: the worker.
        sender: the client's key.
        native: seal by the native library, where it is installed.
    """

    def __init__(self, bound: Bound, target: Target, sender: Ed25519PrivateKey, *, native: bool = True) -> None:
        secret = os.urandom(KEY_BYTES)
        self._keys: SessionCiphers | NativeSession
        if native and native_envelope.installed():
            self._keys = NativeSession(secret, bound, target)
        else:
            self._keys = SessionCiphers(secret, target.key_id, bound.request_id)
        self._bound = bound
        self._target = target
        self._lock = threading.Lock()
        self._hashes: dict[str, SessionHash] = {}
        self._next = 0
        self.opening = envelope.open_session(secret, bound, target, sender)
        """The envelope that opens it, and the means to open its answer."""

    @property
    def used(self) -> int:
        """Requests sealed so far."""
        return self._next

    def seal(self, plaintext: bytes, method: str, token_id: str, issued_at_ms: int, *, end: bool = False) -> Sealed:
        """Seal the next request; the worker takes at most :data:`MAX_REQUESTS` of them."""
        with self._lock:
            counter, self._next = self._next, self._next + 1
        keys = self._keys
        if isinstance(keys, NativeSession):
            return keys.seal(plaintext, (method, token_id, issued_at_ms), counter, end=end)
        place = pb.SessionPlace(key_id=self._target.key_id, session_id=self._bound.request_id, counter=counter, end=end)
        digest = self._hash(method).digest(place, token_id, issued_at_ms, chunk_count(plaintext))
        head = pb.SealedInferRequest(
            version=envelope.VERSION,
            suite=pb.Suite.ValueType(self._bound.suite),
            issued_at_ms=issued_at_ms,
            deployment=self._bound.deployment,
            method=method,
            session=place,
        )
        wire = envelope.on_the_wire(head.SerializeToString(), keys.requests, digest, plaintext, prefix_of(counter))
        return Sealed(wire, digest, {self._target.key_id: session_answer_opener(keys, digest, counter)})

    def _hash(self, method: str) -> SessionHash:
        if method not in self._hashes:
            self._hashes[method] = SessionHash(
                self._bound.request_id,
                suite=self._bound.suite,
                key_id=self._target.key_id,
                project=self._bound.project,
                deployment=self._bound.deployment,
                variant_digest=self._target.variant_digest,
                method=method,
            )
        return self._hashes[method]
