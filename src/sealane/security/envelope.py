"""Sealed payloads: what the client sends, only a chosen worker can read (format: docs/sealed-protocol.md).

Pure: bytes in, bytes out. The client's half is :class:`Sealer`, the worker's :class:`Opener`.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealane.clock import Clock
from sealane.errors import InvalidArgument, SealaneError, Unauthenticated
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.rpc.call import Identity
from sealane.security import jws, suites
from sealane.security.proof import ReplayCache
from sealane.security.suites import KeyPair

VERSION = 1
METHOD = "/inference.GRPCInferenceService/ModelInfer"
CHUNK_BYTES = 1 << 20
WINDOW_SECONDS = 60.0
REPLAY_SECONDS = 120.0
MAX_RECIPIENTS = 8
REQUEST, RESPONSE = b"request", b"response"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Bound:
    """What every key of a request is bound to, beside the recipient's own key id and variant."""

    suite: int
    project: str
    deployment: str
    method: str
    request_id: bytes
    token_id: str
    issued_at_ms: int


@dataclass(frozen=True, slots=True)
class Target:
    """A worker to seal to: its key, and the variant it must be serving."""

    key_id: str
    public_key: bytes
    variant_digest: str


def lp(*parts: bytes | str | int) -> bytes:
    """Length-prefixed concatenation: 4-byte big-endian length, then the part; ints as 8 bytes."""
    out = bytearray()
    for part in parts:
        data = part.encode() if isinstance(part, str) else struct.pack(">Q", part) if isinstance(part, int) else part
        out += struct.pack(">I", len(data)) + data
    return bytes(out)


def _info(bound: Bound, key_id: str, variant_digest: str) -> bytes:
    return lp(
        "sealane/seal/v1",
        bound.suite,
        key_id,
        bound.project,
        bound.deployment,
        variant_digest,
        bound.method,
        bound.request_id,
        bound.token_id,
        bound.issued_at_ms,
    )


def envelope_hash(bound: Bound, sender_key: bytes, chunks: int, recipients: Sequence[pb.Recipient]) -> bytes:
    """SHA-256 over everything but the ciphertext, which the data key authenticates."""
    wraps = [lp(item.key_id, item.variant_digest, item.wrapped_key) for item in recipients]
    head = lp(
        "sealane/envelope/v1",
        VERSION,
        bound.suite,
        bound.project,
        bound.deployment,
        bound.method,
        bound.request_id,
        bound.token_id,
        bound.issued_at_ms,
        sender_key,
        chunks,
    )
    return hashlib.sha256(head + lp(*wraps)).digest()


def seal_chunks(key: bytes, direction: bytes, digest: bytes, plaintext: bytes) -> list[bytes]:
    """AES-256-GCM chunks of 1 MiB. Nonce: index and last flag, so that truncation shows."""
    cipher, total = AESGCM(key), chunk_count(plaintext)
    view = memoryview(plaintext)
    return [
        cipher.encrypt(
            _nonce(index, total), bytes(view[index * CHUNK_BYTES :][:CHUNK_BYTES]), lp(direction, digest, index)
        )
        for index in range(total)
    ]


def open_chunks(key: bytes, direction: bytes, digest: bytes, chunks: Sequence[bytes]) -> bytes:
    """The plaintext of chunks.

    Raises:
        InvalidTag: anything at all is not as it was sealed.
    """
    cipher, total = AESGCM(key), len(chunks)
    return b"".join(
        cipher.decrypt(_nonce(index, total), chunk, lp(direction, digest, index)) for index, chunk in enumerate(chunks)
    )


def chunk_count(plaintext: bytes) -> int:
    """Chunks that a plaintext takes; an empty one takes one."""
    return max(1, -(-len(plaintext) // CHUNK_BYTES))


def _nonce(index: int, total: int) -> bytes:
    return struct.pack(">QI", index, int(index == total - 1))


def response_key(nonce: bytes, secret: bytes, key_id: str, digest: bytes) -> bytes:
    """Key of the answer: only the sender and this one recipient can derive it."""
    info = lp("sealane/response/v1", key_id, digest)
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt=nonce, info=info).derive(secret)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed request and what its sender needs to open the answer."""

    request: pb.SealedInferRequest
    digest: bytes
    secrets: dict[str, bytes]

    def open(self, response: pb.SealedInferResponse) -> bytes:
        """The plaintext of the answer.

        Raises:
            InvalidArgument: the answer was not made by a recipient of this request.
        """
        secret = self.secrets.get(response.key_id)
        if secret is None or len(response.nonce) != 16:
            raise InvalidArgument("the sealed answer is not from a worker this request was sealed to")
        key = response_key(response.nonce, secret, response.key_id, self.digest)
        try:
            return open_chunks(key, RESPONSE, self.digest, list(response.chunks))
        except InvalidTag as error:
            raise InvalidArgument("cannot open the sealed answer; it was altered on its way") from error


def seal(plaintext: bytes, bound: Bound, targets: Sequence[Target], sender: Ed25519PrivateKey) -> Sealed:
    """Seal `plaintext` so that each of `targets` and nobody else can open it."""
    if not 1 <= len(targets) <= MAX_RECIPIENTS:
        raise InvalidArgument(f"a request is sealed to 1 to {MAX_RECIPIENTS} workers, not {len(targets)}")
    data_key, secrets, recipients = os.urandom(_KEY_BYTES), {}, []
    for target in targets:
        secret = os.urandom(_KEY_BYTES)
        info = _info(bound, target.key_id, target.variant_digest)
        wrapped = suites.wrap(bound.suite, target.public_key, data_key + secret, info)
        recipients.append(pb.Recipient(key_id=target.key_id, variant_digest=target.variant_digest, wrapped_key=wrapped))
        secrets[target.key_id] = secret
    sender_key = sender.public_key().public_bytes_raw()
    digest = envelope_hash(bound, sender_key, chunk_count(plaintext), recipients)
    request = pb.SealedInferRequest(
        version=VERSION,
        suite=pb.Suite.ValueType(bound.suite),
        request_id=bound.request_id,
        issued_at_ms=bound.issued_at_ms,
        deployment=bound.deployment,
        method=bound.method,
        recipients=recipients,
        chunks=seal_chunks(data_key, REQUEST, digest, plaintext),
        sender_key=sender_key,
        signature=sender.sign(digest),
    )
    return Sealed(request, digest, secrets)


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
    """A request that opened, and the means to seal its answer."""

    plaintext: bytes
    key_id: str
    digest: bytes
    secret: bytes

    def seal(self, plaintext: bytes) -> pb.SealedInferResponse:
        """The sealed answer."""
        nonce = os.urandom(16)
        key = response_key(nonce, self.secret, self.key_id, self.digest)
        return pb.SealedInferResponse(
            key_id=self.key_id, nonce=nonce, chunks=seal_chunks(key, RESPONSE, self.digest, plaintext)
        )


class Opener:
    """Opens requests with the key pair of this process start."""

    def __init__(self, pair: KeyPair, clock: Clock) -> None:
        self._pair = pair
        self._clock = clock
        self._replays = ReplayCache(clock, window=REPLAY_SECONDS)

    def open(self, request: pb.SealedInferRequest, caller: Identity, variant_digest: str) -> Opened:
        """Open a request, in the order of SECURITY 3.4; the token was verified before.

        Args:
            request: the envelope.
            caller: identity of the verified token.
            variant_digest: digest of the variant that the envelope's deployment serves here; empty
                where it serves none.

        Raises:
            Unauthenticated: the token is not bound to the sender's key.
            StaleKey: sealed to another key than this worker's.
            InvalidArgument: every failure after that, with one text.
        """
        sender = request.sender_key
        if not caller.key_thumbprint or len(sender) != 32 or jws.thumbprint(sender) != caller.key_thumbprint:
            raise Unauthenticated(
                "a sealed call needs a token bound to the sender's key; get one with a key thumbprint",
                reason="SENDER_KEY",
            )
        recipient = next((item for item in request.recipients if item.key_id == self._pair.key_id), None)
        if recipient is None:
            raise StaleKey
        if request.issued_at_ms < 0 or request.suite != self._pair.suite:
            raise _cannot_open()
        try:
            return self._open(request, caller, recipient, variant_digest)
        except (InvalidTag, InvalidSignature, ValueError) as error:
            raise _cannot_open() from error

    def _open(
        self, request: pb.SealedInferRequest, caller: Identity, recipient: pb.Recipient, variant_digest: str
    ) -> Opened:
        bound = Bound(
            suite=request.suite,
            project=caller.project,
            deployment=request.deployment,
            method=request.method,
            request_id=request.request_id,
            token_id=caller.token_id,
            issued_at_ms=request.issued_at_ms,
        )
        digest = envelope_hash(bound, request.sender_key, len(request.chunks), request.recipients)
        Ed25519PublicKey.from_public_bytes(request.sender_key).verify(request.signature, digest)
        self._check(request, variant_digest, digest)
        info = _info(bound, self._pair.key_id, variant_digest)
        keys = suites.unwrap(request.suite, self._pair, recipient.wrapped_key, info)
        if len(keys) != 2 * _KEY_BYTES:
            raise _cannot_open()
        plaintext = open_chunks(keys[:_KEY_BYTES], REQUEST, digest, list(request.chunks))
        return Opened(plaintext, self._pair.key_id, digest, keys[_KEY_BYTES:])

    def _check(self, request: pb.SealedInferRequest, variant_digest: str, digest: bytes) -> None:
        age = abs(self._clock.now() - request.issued_at_ms / 1000)
        acceptable = (
            request.version == VERSION
            and request.method == METHOD
            and len(request.request_id) == 16
            and 1 <= len(request.recipients) <= MAX_RECIPIENTS
            and bool(variant_digest)
            and age <= WINDOW_SECONDS
        )
        # The signature is checked by now, so only the holder of the token's key can fill the cache.
        if not acceptable or not self._replays.add(request.request_id.hex()):
            raise _cannot_open()


def _cannot_open() -> InvalidArgument:
    return InvalidArgument("cannot open sealed payload", reason="CANNOT_OPEN")
