"""The worker's half of sealed payloads: opens requests with the key pair of this process start (SECURITY 3.4).

The order of the checks is part of the protocol: what is public knowledge is answered for what it is, and every failure
after that has one code and one text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealane.clock import Clock
from sealane.errors import InvalidArgument, SealaneError, Unauthenticated
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols.sealed import RUNS
from sealane.rpc.call import Identity
from sealane.security import envelope, jws, suites
from sealane.security.envelope import KEY_BYTES, NONCE_BYTES, Bound
from sealane.security.kept_sessions import KeptSession, KeptSessions, Owner
from sealane.security.sealed_chunks import REQUEST, RESPONSE, Chunk, ChunkCipher
from sealane.security.sealed_session import SessionCiphers, SessionHash, prefix_of
from sealane.security.seen import SeenRequests
from sealane.security.suites import KeyPair


class StaleKey(SealaneError):
    """The envelope names a key this worker does not have: public knowledge, so it may be said."""

    kind = "FAILED_PRECONDITION"

    def __init__(self) -> None:
        super().__init__(
            "the sealing key is unknown or expired; fetch the sealing context and seal again",
            reason="STALE_SEALING_KEY",
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """A request that opened, and the means to seal its answer.

    Attributes:
        plaintext: the serialized request; empty for what opens a session or ends a stream.
        method: method that it is a request of.
        seal: seals the answer; once, for its keys are for one.
        end: whether it ends a stream.
        deployment: that it was sealed for.
        variant_digest: of what that serves.
        sender: key that signed it; empty under a session.
    """

    plaintext: bytes | bytearray = field(repr=False)
    method: str
    seal: Callable[[bytes], pb.SealedInferResponse] = field(repr=False)
    end: bool = False
    deployment: str = ""
    variant_digest: str = ""
    sender: bytes = b""

    def answer(self, plaintext: bytes) -> bytes:
        """The sealed answer, serialized; once."""
        return self.seal(plaintext).SerializeToString()


class Keys(Protocol):
    """The two slow steps, where a library takes them."""

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """As :func:`sealane.security.suites.unwrap` with the opener's key pair."""
        ...

    def verify(self, key: bytes, signature: bytes, message: bytes) -> None:
        """Check an Ed25519 signature; raises InvalidSignature."""
        ...


class PlainKeys:
    """The same by the cryptography that Python has."""

    def __init__(self, pair: KeyPair) -> None:
        self._pair = pair

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """As :func:`sealane.security.suites.unwrap`."""
        return suites.unwrap(self._pair.suite, self._pair, wrapped, info)

    def verify(self, key: bytes, signature: bytes, message: bytes) -> None:
        """Check an Ed25519 signature; raises InvalidSignature."""
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)


class Memory(Protocol):
    """Ids of requests that came before; see :class:`sealane.security.seen.SeenRequests`."""

    def add(self, request_id: bytes, project: str, issued_at_ms: int) -> bool:
        """Remember one; False where it was there already."""
        ...


class Opener:
    """Opens requests.

    Args:
        pair: the key pair of this process start.
        clock: time.
        seen: ids of requests that came before; default: an empty memory.
        sessions: sessions kept; default: none yet.
        keys: unwraps and verifies; default: by the cryptography that Python has.
    """

    def __init__(
        self,
        pair: KeyPair,
        clock: Clock,
        seen: Memory | None = None,
        sessions: KeptSessions | None = None,
        keys: Keys | None = None,
    ) -> None:
        self._pair = pair
        self._keys: Keys = PlainKeys(pair) if keys is None else keys
        self._clock = clock
        self._seen: Memory = SeenRequests(clock) if seen is None else seen
        self._sessions = KeptSessions(clock) if sessions is None else sessions

    def open_body(self, body: bytes, caller: Identity, variant_of: Callable[[str], str]) -> Opened:
        """Open a serialized request: as :meth:`open`.

        Args:
            body: a SealedInferRequest.
            caller: identity of the verified token.
            variant_of: deployment -> digest of the variant that it serves here; empty where it serves none.

        Raises:
            SealaneError: as :meth:`open`; it is malformed; or what `variant_of` raises.
        """
        head, chunks = envelope.parsed(body)
        return self.open(head, caller, variant_of(head.deployment), chunks)

    def open(
        self,
        request: pb.SealedInferRequest,
        caller: Identity,
        variant_digest: str,
        chunks: Sequence[Chunk] | None = None,
    ) -> Opened:
        """Open a request, sealed by itself or under a session; the token was verified before.

        Args:
            request: the envelope.
            caller: identity of the verified token.
            variant_digest: digest of the variant that the envelope's deployment serves here; empty
                where it serves none.
            chunks: its chunks, where they are not in the message (:func:`sealane.security.envelope.parsed`).

        Raises:
            Unauthenticated: the token is not bound to the sender's key.
            FailedPrecondition: sealed to another key than this worker's, or under a session that it does not keep.
            ResourceExhausted: too many requests to remember.
            InvalidArgument: every failure after that, with one text.
        """
        sent = list(request.chunks) if chunks is None else chunks
        if request.HasField("session"):
            return self._of_session(request, caller, variant_digest, sent)
        opened = self._envelope(request, caller, variant_digest, len(sent))
        if request.method not in RUNS:
            raise _cannot_open()
        try:
            plaintext = ChunkCipher(opened.data_key, REQUEST).open(opened.digest, sent)
        except InvalidTag as error:
            raise _cannot_open() from error
        sealed = request.deployment, variant_digest, request.sender_key
        return Opened(plaintext, request.method, self._sealer(opened), False, *sealed)

    def open_session(self, request: pb.SealedInferRequest, caller: Identity, variant_digest: str) -> Opened:
        """Keep the session that an envelope opens, of its own or of a stream; arguments and errors as for :meth:`open`.

        Raises:
            ResourceExhausted: too many sessions.
        """
        if request.HasField("session"):
            raise _cannot_open()
        opened = self._envelope(request, caller, variant_digest, len(request.chunks))
        ordered = envelope.OPENS.get(request.method)
        if ordered is None or request.chunks or len(request.recipients) != 1:
            raise _cannot_open()
        ciphers = SessionCiphers(opened.data_key, self._pair.key_id, request.request_id)
        owner = Owner(caller.key_thumbprint, caller.project)
        if not self._sessions.keep(request.request_id, ciphers, owner, ordered=ordered):
            raise _cannot_open()
        return Opened(b"", request.method, self._sealer(opened))

    def end_session(self, session_id: bytes) -> None:
        """Forget a session: its stream is over."""
        self._sessions.end(session_id)

    def _envelope(
        self, request: pb.SealedInferRequest, caller: Identity, variant_digest: str, chunks: int
    ) -> _Unwrapped:
        sender = request.sender_key
        if not caller.key_thumbprint or len(sender) != KEY_BYTES or jws.thumbprint(sender) != caller.key_thumbprint:
            raise _not_the_sender()
        recipient = next((item for item in request.recipients if item.key_id == self._pair.key_id), None)
        if recipient is None:
            raise StaleKey
        many = len(request.recipients) > envelope.MAX_RECIPIENTS
        if many or request.issued_at_ms < 0 or request.suite != self._pair.suite:
            raise _cannot_open()
        try:
            return self._unwrap(request, caller, recipient, variant_digest, chunks)
        except (InvalidTag, InvalidSignature, ValueError) as error:
            raise _cannot_open() from error

    def _unwrap(
        self,
        request: pb.SealedInferRequest,
        caller: Identity,
        recipient: pb.Recipient,
        variant_digest: str,
        chunks: int,
    ) -> _Unwrapped:
        bound = Bound(
            suite=request.suite,
            project=caller.project,
            deployment=request.deployment,
            method=request.method,
            request_id=request.request_id,
            token_id=caller.token_id,
            issued_at_ms=request.issued_at_ms,
        )
        digest = envelope.envelope_hash(bound, request.sender_key, chunks, request.recipients)
        self._keys.verify(request.sender_key, request.signature, digest)
        acceptable = (
            self._fresh(request, variant_digest)
            and len(request.request_id) == NONCE_BYTES
            and len({item.key_id for item in request.recipients}) == len(request.recipients)
        )
        # The signature is checked by now, so only the holder of the token's key can fill the memory.
        if not acceptable or not self._seen.add(request.request_id, caller.project, request.issued_at_ms):
            raise _cannot_open()
        info = envelope.info_of(bound, self._pair.key_id, variant_digest)
        keys = self._keys.unwrap(recipient.wrapped_key, info)
        if len(keys) != 2 * KEY_BYTES:
            raise _cannot_open()
        return _Unwrapped(keys[:KEY_BYTES], keys[KEY_BYTES:], digest)

    def _sealer(self, opened: _Unwrapped) -> Callable[[bytes], pb.SealedInferResponse]:
        def seal(answer: bytes) -> pb.SealedInferResponse:
            nonce, key_id = os.urandom(NONCE_BYTES), self._pair.key_id
            key = envelope.response_key(nonce, opened.secret, key_id, opened.digest)
            return pb.SealedInferResponse(
                key_id=key_id, nonce=nonce, chunks=ChunkCipher(key, RESPONSE).seal(opened.digest, answer)
            )

        return seal

    def _of_session(
        self, request: pb.SealedInferRequest, caller: Identity, variant_digest: str, chunks: Sequence[Chunk]
    ) -> Opened:
        place = request.session
        if place.key_id != self._pair.key_id:
            raise StaleKey
        session = self._sessions.find(place.session_id)
        if caller.key_thumbprint != session.sender:
            raise _not_the_sender()
        # What belongs to an envelope by itself has no place here: nothing would authenticate it.
        stray = request.recipients or request.request_id or request.sender_key or request.signature
        if request.issued_at_ms < 0 or stray:
            raise _cannot_open()
        if not self._fresh(request, variant_digest) or (request.method not in RUNS and not place.end):
            raise _cannot_open()
        try:
            return self._with_session(request, caller, variant_digest, session, chunks)
        except (InvalidTag, ValueError) as error:
            raise _cannot_open() from error

    def _with_session(
        self,
        request: pb.SealedInferRequest,
        caller: Identity,
        variant_digest: str,
        session: KeptSession,
        chunks: Sequence[Chunk],
    ) -> Opened:
        place, method = request.session, request.method
        hashed = session.hash_of(
            (caller.project, request.deployment, variant_digest, method),
            lambda: SessionHash(
                place.session_id,
                suite=self._pair.suite,
                key_id=self._pair.key_id,
                project=caller.project,
                deployment=request.deployment,
                variant_digest=variant_digest,
                method=method,
            ),
        )
        digest = hashed.digest(place, caller.token_id, request.issued_at_ms, len(chunks))
        prefix = prefix_of(place.counter)
        plaintext = session.ciphers.requests.open(digest, chunks, prefix)
        # Taken only now: what is not authentic uses no number up. Of two copies that open, one is taken.
        if (place.end and plaintext) or not session.numbers.take(place.counter):
            raise _cannot_open()
        if place.end:
            self._sessions.end(place.session_id)

        def seal(answer: bytes) -> pb.SealedInferResponse:
            return pb.SealedInferResponse(
                key_id=self._pair.key_id, chunks=session.ciphers.answers.seal(digest, answer, prefix)
            )

        return Opened(plaintext, method, seal, place.end, request.deployment, variant_digest)

    def _fresh(self, request: pb.SealedInferRequest, variant_digest: str) -> bool:
        age = abs(self._clock.now() - request.issued_at_ms / 1000)
        same = request.version == envelope.VERSION and request.suite == self._pair.suite
        return same and bool(variant_digest) and age <= envelope.WINDOW_SECONDS


@dataclass(frozen=True, slots=True)
class _Unwrapped:
    """What an envelope gives its recipient."""

    data_key: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    digest: bytes


def _cannot_open() -> InvalidArgument:
    return InvalidArgument("cannot open sealed payload", reason="CANNOT_OPEN")


def _not_the_sender() -> Unauthenticated:
    return Unauthenticated(
        "a sealed call needs a token bound to the sender's key; get one with a key thumbprint", reason="SENDER_KEY"
    )
