"""Sealed payloads, made anew from docs/sealed-protocol.md alone: both ends of requests, answers, sessions and streams.

It shares no code with `sealane.security`, so that the two show each other's mistakes, and the page's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sealed_hpke import X25519, XWING, hkdf_expand, hkdf_extract, open_, public_of
from sealed_hpke import seal as hpke_seal

from sealane.inference.v1.sealed_inference_service_pb2 import (
    Recipient,
    SealedInferRequest,
    SealedInferResponse,
    SessionPlace,
)

KEMS = {1: XWING, 2: X25519}
MIB = 1 << 20
INFER = "/inference.GRPCInferenceService/ModelInfer"
OPEN_SESSION = "/sealane.inference.v1.SealedInferenceService/OpenSealedSession"
OPEN_STREAM = "/sealane.inference.v1.SealedInferenceService/SealedInferStream"


def lp(*parts: bytes | str | int) -> bytes:
    """`LP` of the page."""
    out = b""
    for part in parts:
        data = part.encode() if isinstance(part, str) else part.to_bytes(8) if isinstance(part, int) else part
        out += len(data).to_bytes(4) + data
    return out


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def key_id_of(public: bytes) -> str:
    return base64url(hashlib.sha256(public).digest())


def thumbprint(sender_key: bytes) -> str:
    """RFC 7638 with the members of RFC 8037."""
    jwk = {"crv": "Ed25519", "kty": "OKP", "x": base64url(sender_key)}
    return base64url(hashlib.sha256(json.dumps(jwk, separators=(",", ":")).encode()).digest())


@dataclass(frozen=True)
class Worker:
    """One to seal to; with its private key, one that opens."""

    suite: int
    public: bytes
    variant: str
    private: bytes = b""

    @property
    def key_id(self) -> str:
        return key_id_of(self.public)

    @classmethod
    def with_key(cls, suite: int, private: bytes, variant: str) -> Worker:
        return cls(suite, public_of(KEMS[suite], private), variant, private)


@dataclass(frozen=True)
class Token:
    """What keys are bound to of the token that goes with a request."""

    project: str
    token_id: str


@dataclass(frozen=True)
class Keys:
    """What one request and one worker share. In an opening, the data key is the session secret.

    Of a request of a session, `data_key` and `response_secret` are the session's request key and answer key.
    """

    key_id: str
    bound: bytes  # the envelope hash or the request hash
    data_key: bytes
    response_secret: bytes
    counter: int | None = None


def nonces_of(counter: int | None, total: int) -> list[bytes]:
    return [(counter or 0).to_bytes(4) + i.to_bytes(4) + int(i == total - 1).to_bytes(4) for i in range(total)]


def seal_chunks(key: bytes, direction: str, bound: bytes, plaintext: bytes, counter: int | None = None) -> list[bytes]:
    parts = [plaintext[at : at + MIB] for at in range(0, max(len(plaintext), 1), MIB)]
    nonces = nonces_of(counter, len(parts))
    return [AESGCM(key).encrypt(nonces[i], part, lp(direction, bound, i)) for i, part in enumerate(parts)]


def open_chunks(key: bytes, direction: str, bound: bytes, chunks: list[bytes], counter: int | None = None) -> bytes:
    nonces = nonces_of(counter, len(chunks))
    opened = [AESGCM(key).decrypt(nonces[i], chunk, lp(direction, bound, i)) for i, chunk in enumerate(chunks)]
    if not opened or any(len(part) != MIB for part in opened[:-1]) or len(opened[-1]) > MIB:
        raise ValueError("not in chunks of 1 MiB")
    return b"".join(opened)


# -- a request by itself -------------------------------------------------------------------------------------------


def wrap_info(message: SealedInferRequest, token: Token, key_id: str, variant: str) -> bytes:
    return lp(
        *("sealane/seal/v1", message.suite, key_id, token.project, message.deployment, variant, message.method),
        *(message.request_id, token.token_id, message.issued_at_ms),
    )


def envelope_hash(message: SealedInferRequest, token: Token, chunks: int) -> bytes:
    head = lp(
        *("sealane/envelope/v1", message.version, message.suite, token.project, message.deployment, message.method),
        *(message.request_id, token.token_id, message.issued_at_ms, message.sender_key, chunks),
    )
    recipients = [lp(each.key_id, each.variant_digest, each.wrapped_key) for each in message.recipients]
    return hashlib.sha256(head + lp(*recipients)).digest()


def seal_request(
    message: SealedInferRequest, token: Token, sender: Ed25519PrivateKey, workers: list[Worker], plaintext: bytes | None
) -> dict[str, Keys]:
    """Complete a message that names version, suite, issued_at_ms, deployment and method. No plaintext: an opening."""
    data_key, message.request_id = os.urandom(32), os.urandom(16)
    message.sender_key = sender.public_key().public_bytes_raw()
    secrets = {worker.key_id: os.urandom(32) for worker in workers}
    for worker in workers:
        info = wrap_info(message, token, worker.key_id, worker.variant)
        wrapped = hpke_seal(KEMS[worker.suite], worker.public, info, data_key + secrets[worker.key_id])
        message.recipients.append(Recipient(key_id=worker.key_id, variant_digest=worker.variant, wrapped_key=wrapped))
    chunks = 0 if plaintext is None else max(1, -(-len(plaintext) // MIB))
    bound = envelope_hash(message, token, chunks)
    message.signature = sender.sign(bound)
    if plaintext is not None:
        message.chunks.extend(seal_chunks(data_key, "request", bound, plaintext))
    return {key_id: Keys(key_id, bound, data_key, secret) for key_id, secret in secrets.items()}


def open_request(message: SealedInferRequest, token: Token, jkt: str, worker: Worker) -> tuple[Keys, bytes | None]:
    """What a worker makes of it; raises where it does not open. No plaintext: an opening."""
    if thumbprint(message.sender_key) != jkt:
        raise ValueError("another sender")
    bound = envelope_hash(message, token, len(message.chunks))
    Ed25519PublicKey.from_public_bytes(message.sender_key).verify(message.signature, bound)
    mine = [each for each in message.recipients if each.key_id == worker.key_id]
    if len(mine) != 1 or message.version != 1 or message.suite != worker.suite:
        raise ValueError("not for this worker")
    info = wrap_info(message, token, worker.key_id, worker.variant)
    both = open_(KEMS[worker.suite], worker.private, info, mine[0].wrapped_key)
    keys = Keys(worker.key_id, bound, both[:32], both[32:])
    if message.method in (OPEN_SESSION, OPEN_STREAM):
        return keys, None
    return keys, open_chunks(keys.data_key, "request", bound, list(message.chunks))


# -- answers -------------------------------------------------------------------------------------------------------


def response_key(keys: Keys, nonce: bytes) -> bytes:
    if len(nonce) != (16 if keys.counter is None else 0):
        raise ValueError("the nonce of another kind of answer")
    if keys.counter is not None:
        return keys.response_secret
    info = lp("sealane/response/v1", keys.key_id, keys.bound)
    return hkdf_expand(hkdf_extract(nonce, keys.response_secret), info, 32)


def seal_answer(keys: Keys, plaintext: bytes) -> SealedInferResponse:
    nonce = os.urandom(16) if keys.counter is None else b""
    chunks = seal_chunks(response_key(keys, nonce), "response", keys.bound, plaintext, keys.counter)
    return SealedInferResponse(key_id=keys.key_id, nonce=nonce, chunks=chunks)


def open_answer(sent: dict[str, Keys], answer: SealedInferResponse) -> bytes:
    """The plaintext, with its first byte, of the answer to what was sealed to the workers of these keys."""
    if answer.key_id not in sent:
        raise ValueError("from a worker that it was not sealed to")
    keys = sent[answer.key_id]
    return open_chunks(response_key(keys, answer.nonce), "response", keys.bound, list(answer.chunks), keys.counter)


# -- requests of a session or stream -------------------------------------------------------------------------------


def session_keys(message: SealedInferRequest, token: Token, secret: bytes, variant: str, chunks: int) -> Keys:
    place = message.session
    info = lp("sealane/session/v1", place.key_id, place.session_id)
    both = hkdf_expand(secret, info, 64)
    request_hash = lp(
        *("sealane/session-request/v1", message.version, message.suite, place.key_id, token.project),
        *(message.deployment, variant, message.method, place.session_id, place.counter, int(place.end)),
        *(token.token_id, message.issued_at_ms, chunks),
    )
    return Keys(place.key_id, hashlib.sha256(request_hash).digest(), both[:32], both[32:], place.counter)


def seal_in_session(
    message: SealedInferRequest, token: Token, secret: bytes, place: SessionPlace, variant: str, plaintext: bytes
) -> dict[str, Keys]:
    """Complete a message that names version, suite, issued_at_ms, deployment and method."""
    message.session.CopyFrom(place)
    keys = session_keys(message, token, secret, variant, max(1, -(-len(plaintext) // MIB)))
    message.chunks.extend(seal_chunks(keys.data_key, "request", keys.bound, plaintext, keys.counter))
    return {place.key_id: keys}


def open_in_session(message: SealedInferRequest, token: Token, secret: bytes, variant: str) -> tuple[Keys, bytes]:
    keys = session_keys(message, token, secret, variant, len(message.chunks))
    return keys, open_chunks(keys.data_key, "request", keys.bound, list(message.chunks), keys.counter)
