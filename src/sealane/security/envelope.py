"""Sealed payloads: what the client sends, only a chosen worker can read (format: docs/sealed-protocol.md).

Pure: bytes in, bytes out. Here are the format and the client's half; the worker's is :mod:`sealane.security.opener`,
and what both do under a session is :mod:`sealane.security.sealed_session`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from sealane.errors import InvalidArgument
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols.sealed import OPEN_SESSION, OPEN_STREAM
from sealane.protocols.wire import length_delimited, split
from sealane.security import suites
from sealane.security.length_prefixed import lp
from sealane.security.sealed_chunks import (
    ALONE,
    CHUNK_BYTES,
    REQUEST,
    RESPONSE,
    TAG_BYTES,
    ChunkCipher,
    chunk_count,
)

VERSION = 1
WINDOW_SECONDS = 60.0
MAX_RECIPIENTS = 8
KEY_BYTES = 32
NONCE_BYTES = 16
#: Field of a SealedInferRequest.
_CHUNKS = 8
#: No message that a server takes holds more of them, nor more beside them.
_MAX_CHUNKS, _HEAD_BYTES = 65, 64 * 1024

#: First byte of the plaintext of an answer: what follows it.
ANSWER, STATUS = b"\x00", b"\x01"

#: Methods of envelopes that hold no request but open a session, and whether its requests come one after the other.
OPENS = {OPEN_SESSION: False, OPEN_STREAM: True}


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


def info_of(bound: Bound, key_id: str, variant_digest: str) -> bytes:
    """What a wrapped key is bound to (RFC 9180 section 8.1): used anywhere else, it does not open."""
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


def parsed(body: bytes) -> tuple[pb.SealedInferRequest, list[memoryview]]:
    """A serialized request without its chunks, and these where they lie: a large tensor is not copied to be opened.

    Raises:
        InvalidArgument: a body that is no well-formed message.
    """
    try:
        head, chunks = split(body, _CHUNKS, _MAX_CHUNKS)
        if len(head) > _HEAD_BYTES:
            raise ValueError("too large")
        return pb.SealedInferRequest.FromString(head), chunks
    except (DecodeError, ValueError) as error:
        raise InvalidArgument("malformed request; send a SealedInferRequest", reason="MALFORMED") from error


def parsed_answer(body: bytes) -> pb.SealedInferResponse:
    """A serialized answer.

    Raises:
        InvalidArgument: a body that is no well-formed message.
    """
    try:
        return pb.SealedInferResponse.FromString(body)
    except DecodeError as error:
        raise InvalidArgument("the answer is malformed; is this a Sealane endpoint?", reason="MALFORMED") from error


def response_key(nonce: bytes, secret: bytes, key_id: str, digest: bytes) -> bytes:
    """Key of the answer: only the sender and this one recipient can derive it. HKDF-SHA256, RFC 5869."""
    return expanded(hmac.digest(nonce, secret, "sha256"), lp("sealane/response/v1", key_id, digest))


def expanded(secret: bytes, info: bytes) -> bytes:
    """32 bytes of HKDF-Expand (RFC 5869 section 2.3): its first block.

    In a call of 150 KB the library's object costs as much as the encryption.
    """
    return hmac.digest(secret, info + b"\x01", "sha256")


Open = Callable[[pb.SealedInferResponse], bytes | bytearray]
"""Opens the answer of one recipient; raises InvalidTag."""


class Sealed:
    """A sealed request and what its sender needs to open the answer.

    Args:
        wire: the serialized SealedInferRequest.
        digest: what request and answer are bound to.
        openers: key id -> how an answer of that worker is opened.
    """

    def __init__(self, wire: bytes, digest: bytes, openers: Mapping[str, Open]) -> None:
        self.wire = wire
        self.digest = digest
        self._openers = openers

    @cached_property
    def request(self) -> pb.SealedInferRequest:
        """The same as a message."""
        return pb.SealedInferRequest.FromString(self.wire)

    def read(self, answer: bytes) -> bytes | bytearray:
        """The plaintext of a serialized answer; errors as :meth:`open`."""
        return self.open(parsed_answer(answer))

    def open(self, response: pb.SealedInferResponse) -> bytes | bytearray:
        """The plaintext of the answer.

        Raises:
            InvalidArgument: the answer was not made by a recipient of this request.
        """
        opener = self._openers.get(response.key_id)
        if opener is None:
            raise InvalidArgument("the sealed answer is not from a worker this request was sealed to")
        try:
            return opener(response)
        except InvalidTag as error:
            raise InvalidArgument("cannot open the sealed answer; it was altered on its way") from error


def answer_opener(secret: bytes, digest: bytes) -> Open:
    """Opens the answer of the recipient that has `secret`, to the request of `digest`."""

    def open_answer(response: pb.SealedInferResponse) -> bytes | bytearray:
        if len(response.nonce) != NONCE_BYTES:
            raise InvalidTag
        key = response_key(response.nonce, secret, response.key_id, digest)
        return ChunkCipher(key, RESPONSE).open(digest, list(response.chunks))

    return open_answer


def on_the_wire(begun: bytes, cipher: ChunkCipher, digest: bytes, plaintext: bytes, prefix: bytes = ALONE) -> bytes:
    """A serialized request with its chunks, which are encrypted where they come to stand behind the rest of it.

    A message would copy each of them three times on its way to the wire, into memory that the process has to ask for
    each time: more than all the cryptography of a small tensor.
    """
    view = memoryview(plaintext)
    parts = [view[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES] for index in range(chunk_count(plaintext))]
    marks = [length_delimited(_CHUNKS, len(part) + TAG_BYTES) for part in parts]
    size = len(begun) + sum(len(mark) + len(part) + TAG_BYTES for mark, part in zip(marks, parts, strict=True))
    buffer, places, at = _buffer(size), list[memoryview](), len(begun)
    buffer[:at] = begun
    for mark, part in zip(marks, parts, strict=True):
        begins = at + len(mark)
        buffer[at:begins] = mark
        at = begins + len(part) + TAG_BYTES
        places.append(buffer[begins:at])
    cipher.seal_into(digest, parts, places, prefix)
    return bytes(buffer)


class _Scratch(threading.local):
    """A buffer of each thread for requests of usual size: it holds ciphertext alone."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(2 * CHUNK_BYTES))


_scratch = _Scratch()


def _buffer(size: int) -> memoryview:
    kept = _scratch.buffer
    return kept[:size] if size <= len(kept) else memoryview(bytearray(size))


@dataclass(slots=True)
class Prepared:
    """An envelope for a plaintext that is still to come: keys are wrapped and it is signed. It seals one plaintext.

    Attributes:
        chunks: that the plaintext must have: their number is signed.
    """

    head: bytes
    chunks: int
    digest: bytes
    data_key: bytes = field(repr=False)
    openers: Mapping[str, Open] = field(repr=False)

    def seal(self, plaintext: bytes) -> Sealed:
        """Seal it; once.

        Raises:
            ValueError: for the second time, or with another number of chunks.
        """
        data_key, self.data_key = self.data_key, b""
        if chunk_count(plaintext) != self.chunks or not data_key:
            raise used_up()
        cipher = ChunkCipher(data_key, REQUEST)
        return Sealed(on_the_wire(self.head, cipher, self.digest, plaintext), self.digest, self.openers)


def used_up() -> ValueError:
    """For a prepared envelope that is asked for more than it was made for."""
    return ValueError("an envelope is for one plaintext, of as many chunks as were signed")


def check_targets(targets: Sequence[Target]) -> None:
    """Whether an envelope can be made for them.

    Raises:
        InvalidArgument: no worker to seal to, or too many.
    """
    if not 1 <= len(targets) <= MAX_RECIPIENTS:
        raise InvalidArgument(f"a request is sealed to 1 to {MAX_RECIPIENTS} workers, not {len(targets)}")


def prepare(chunks: int, bound: Bound, targets: Sequence[Target], sender: Ed25519PrivateKey) -> Prepared:
    """An envelope that each of `targets` and nobody else can open, for a plaintext of so many chunks.

    Raises:
        InvalidArgument: no worker to seal to, or too many.
    """
    data_key = os.urandom(KEY_BYTES)
    head, digest, openers = _envelope(data_key, chunks, bound, targets, sender)
    return Prepared(head.SerializeToString(), chunks, digest, data_key, openers)


def seal(plaintext: bytes, bound: Bound, targets: Sequence[Target], sender: Ed25519PrivateKey) -> Sealed:
    """Seal `plaintext` so that each of `targets` and nobody else can open it; errors as :func:`prepare`."""
    return prepare(chunk_count(plaintext), bound, targets, sender).seal(plaintext)


def open_session(secret: bytes, bound: Bound, target: Target, sender: Ed25519PrivateKey) -> Sealed:
    """An envelope that gives `target` the secret of a session and holds nothing else."""
    head, digest, openers = _envelope(secret, 0, bound, [target], sender)
    return Sealed(head.SerializeToString(), digest, openers)


def _envelope(
    data_key: bytes, chunks: int, bound: Bound, targets: Sequence[Target], sender: Ed25519PrivateKey
) -> tuple[pb.SealedInferRequest, bytes, Mapping[str, Open]]:
    check_targets(targets)
    secrets, recipients = {}, []
    for target in targets:
        secret = os.urandom(KEY_BYTES)
        info = info_of(bound, target.key_id, target.variant_digest)
        wrapped = suites.wrap(bound.suite, target.public_key, data_key + secret, info)
        recipients.append(pb.Recipient(key_id=target.key_id, variant_digest=target.variant_digest, wrapped_key=wrapped))
        secrets[target.key_id] = secret
    sender_key = sender.public_key().public_bytes_raw()
    digest = envelope_hash(bound, sender_key, chunks, recipients)
    request = pb.SealedInferRequest(
        version=VERSION,
        suite=pb.Suite.ValueType(bound.suite),
        request_id=bound.request_id,
        issued_at_ms=bound.issued_at_ms,
        deployment=bound.deployment,
        method=bound.method,
        recipients=recipients,
        sender_key=sender_key,
        signature=sender.sign(digest),
    )
    return request, digest, {key_id: answer_opener(secret, digest) for key_id, secret in secrets.items()}
