"""The vectors of tests/vectors/sealed as what was sent and answered, and all that is altered on the way."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sealed_parties import ROOT
from sealed_reader import Keys, Token, Worker, seal_chunks

from sealane.inference.v1.sealed_inference_service_pb2 import SealedInferRequest, SealedInferResponse

FOLDER = ROOT / "tests" / "vectors" / "sealed"
NAMES = {1: "mlkem768_x25519", 2: "x25519"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """An answer of a vector, and the key of its chunks."""

    key_id: str
    response_key: bytes
    message: SealedInferResponse
    plaintext: bytes


@dataclass(frozen=True)
class Exchange:
    """A message of a vector, all that it was made with, and the answers to it.

    Attributes:
        keys: of each recipient; of a request of a session, of its one worker.
        infos: of each recipient, what its wrapped key is bound to.
        opening: of the session that it is a request of.
    """

    id: str
    message: SealedInferRequest
    token: Token
    jkt: str
    plaintext: bytes
    keys: dict[str, Keys]
    infos: dict[str, bytes]
    answers: list[Answer]
    opening: Exchange | None = None


@dataclass(frozen=True)
class Vectors:
    """A file."""

    workers: list[Worker]
    sender: Ed25519PrivateKey
    exchanges: list[Exchange]


def kept(suite: int) -> Vectors:
    """The vectors that the repository holds."""
    return read(json.loads((FOLDER / f"{NAMES[suite]}.json").read_text()))


def read(document: Json) -> Vectors:
    """The vectors of a document."""
    workers = [
        Worker.with_key(document["suite"], bytes.fromhex(told["private_key"]), told["variant_digest"])
        for told in document["workers"]
    ]
    for worker, told in zip(workers, document["workers"], strict=True):
        assert (worker.public.hex(), worker.key_id) == (told["public_key"], told["key_id"])
    reading = _Reading(workers, document["sender"]["thumbprint"])
    exchanges = [reading.envelope(told, f"request {index}") for index, told in enumerate(document["requests"])]
    for kind in ("session", "stream"):
        opening = reading.envelope(document[kind]["opening"], kind)
        placed = [reading.placed(told, opening, f"{kind} {told['counter']}") for told in document[kind]["requests"]]
        exchanges += [opening, *placed]
    sender = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(document["sender"]["private_key"]))
    assert sender.public_key().public_bytes_raw().hex() == document["sender"]["public_key"]
    return Vectors(workers, sender, exchanges)


class _Reading:
    """Of one document."""

    def __init__(self, workers: list[Worker], jkt: str) -> None:
        self._workers = workers
        self._jkt = jkt

    def envelope(self, told: Json, name: str) -> Exchange:
        message = SealedInferRequest.FromString(base64.b64decode(told["message"]))
        assert _head(told) == (message.deployment, message.method, message.issued_at_ms)
        assert message.request_id.hex() == told["request_id"]
        bound, data_key = _hex(told, "envelope_hash"), _hex(told, "session_secret" if name[0] == "s" else "data_key")
        keys, infos = {}, {}
        for recipient in told["recipients"]:
            key_id = self._workers[recipient["worker"]].key_id
            keys[key_id] = Keys(key_id, bound, data_key, _hex(recipient, "response_secret"))
            infos[key_id] = _hex(recipient, "info")
        plaintext = plain(told["plaintext"]) if "plaintext" in told else b""
        _restore(message, told, data_key, "request", bound, plaintext)
        answers = self._answers(told, bound)
        return Exchange(name, message, _token(told), self._jkt, plaintext, keys, infos, answers)

    def placed(self, told: Json, opening: Exchange, name: str) -> Exchange:
        message = SealedInferRequest.FromString(base64.b64decode(told["message"]))
        place = message.session
        assert _head(told) == (message.deployment, message.method, message.issued_at_ms)
        assert (place.session_id.hex(), place.counter, place.end) == (
            *(told["session_id"], told["counter"], told["end"]),
        )
        bound = _hex(told, "request_hash")
        secrets = (_hex(told, "request_key"), _hex(told, "answer_key"))
        keys = {place.key_id: Keys(place.key_id, bound, *secrets, counter=place.counter)}
        answers = self._answers(told, bound)
        return Exchange(name, message, _token(told), self._jkt, plain(told["plaintext"]), keys, {}, answers, opening)

    def _answers(self, told: Json, bound: bytes) -> list[Answer]:
        found = []
        for answer in told["answers"]:
            message = SealedInferResponse.FromString(base64.b64decode(answer["message"]))
            assert message.key_id == self._workers[answer["worker"]].key_id
            plaintext, key = plain(answer["plaintext"]), _hex(answer, "response_key")
            _restore(message, answer, key, "response", bound, plaintext)
            found.append(Answer(message.key_id, key, message, plaintext))
        return found


def _restore(
    message: SealedInferRequest | SealedInferResponse,
    told: Json,
    key: bytes,
    direction: str,
    bound: bytes,
    plaintext: bytes,
) -> None:
    """Put back the chunks of which the vector keeps no more than hashes: key and nonces make them what they were."""
    if "chunks_sha256" in told:
        message.chunks.extend(seal_chunks(key, direction, bound, plaintext))
        assert [hashlib.sha256(chunk).hexdigest() for chunk in message.chunks] == told["chunks_sha256"]


def plain(told: Json) -> bytes:
    """A plaintext: in full, or by the one rule."""
    if "hex" in told:
        return bytes.fromhex(told["hex"])
    assert told["rule"] == "byte i is i mod 251"
    return bytes(i % 251 for i in range(told["length"]))


def _head(told: Json) -> tuple[str, str, int]:
    return told["deployment"], told["method"], told["issued_at_ms"]


def _token(told: Json) -> Token:
    return Token(told["project"], told["token_id"])


def _hex(told: Json, name: str) -> bytes:
    return bytes.fromhex(told[name])


# -- what is altered -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """What reaches a worker: a message, what its token says, and the variant that is really served."""

    message: SealedInferRequest
    token: Token
    jkt: str
    worker: Worker


#: Alters the arrival's message, or gives another arrival.
Change = Callable[[Arrival], object]


def flipped(data: bytes, at: int) -> bytes:
    """One bit of it is another one."""
    out = bytearray(data)
    out[at] ^= 1
    return bytes(out)


def _set(**values: object) -> Change:
    def change(arrival: Arrival) -> None:
        for name, value in values.items():
            setattr(arrival.message, name, value)

    return change


def _place(**values: object) -> Change:
    def change(arrival: Arrival) -> None:
        for name, value in values.items():
            setattr(arrival.message.session, name, value)

    return change


def _flip(name: str, at: int) -> Change:
    return lambda arrival: setattr(arrival.message, name, flipped(getattr(arrival.message, name), at))


def _chunk(index: int, change: Callable[[bytes], bytes]) -> Change:
    return lambda arrival: arrival.message.chunks.__setitem__(index, change(arrival.message.chunks[index]))


def _recipient(change: Callable[[Any], object]) -> Change:
    def changed(arrival: Arrival) -> None:
        change(arrival.message.recipients[0])

    return changed


#: Of a request in two chunks, however it was sealed.
ANY_CHANGES: dict[str, Change] = {
    "version": _set(version=2),
    "no suite": _set(suite=0),
    "later": lambda a: setattr(a.message, "issued_at_ms", a.message.issued_at_ms + 1),
    "another deployment": _set(deployment="projects/p1/deployments/other"),
    "another method": _set(method="/tensorflow.serving.PredictionService/Predict"),
    "chunk dropped": lambda a: a.message.chunks.pop(),
    "first chunk dropped": lambda a: a.message.chunks.pop(0),
    "no chunks": lambda a: a.message.ClearField("chunks"),
    "chunk doubled": lambda a: a.message.chunks.append(a.message.chunks[-1]),
    "empty chunk added": lambda a: a.message.chunks.append(b""),
    "chunks swapped": lambda a: a.message.chunks.reverse(),
    "first bit of a chunk": _chunk(0, lambda chunk: flipped(chunk, 0)),
    "last bit of a chunk": _chunk(-1, lambda chunk: flipped(chunk, -1)),
    "chunk cut": _chunk(0, lambda chunk: chunk[:-1]),
    "chunk lengthened": _chunk(0, lambda chunk: chunk + b"\0"),
    "token of another project": lambda a: replace(a, token=Token("p2", a.token.token_id)),
    "token of another sender": lambda a: replace(a, jkt="A" * 43),
    "another token": lambda a: replace(a, token=Token(a.token.project, "token-9")),
    "another variant is served": lambda a: replace(a, worker=replace(a.worker, variant="sha256:9")),
}
#: Of a request by itself, or an opening.
ENVELOPE_CHANGES: dict[str, Change] = {
    "request id": _flip("request_id", 0),
    "sender key": _flip("sender_key", 31),
    "first bit of the signature": _flip("signature", 0),
    "last bit of the signature": _flip("signature", -2),
    "no signature": _set(signature=b""),
    "encapsulated key": _recipient(lambda r: setattr(r, "wrapped_key", flipped(r.wrapped_key, 0))),
    "end of the encapsulated key": _recipient(lambda r: setattr(r, "wrapped_key", flipped(r.wrapped_key, -82))),
    "wrapped key": _recipient(lambda r: setattr(r, "wrapped_key", flipped(r.wrapped_key, -20))),
    "tag of the wrapped key": _recipient(lambda r: setattr(r, "wrapped_key", flipped(r.wrapped_key, -1))),
    "wrapped key cut": _recipient(lambda r: setattr(r, "wrapped_key", r.wrapped_key[:-1])),
    "no wrapped key": _recipient(lambda r: r.ClearField("wrapped_key")),
    "key id": _recipient(lambda r: setattr(r, "key_id", "A" * 43)),
    "variant": _recipient(lambda r: setattr(r, "variant_digest", "sha256:9")),
    "recipient added": lambda a: a.message.recipients.add(key_id="x", variant_digest="y", wrapped_key=b"z"),
    "no recipients": lambda a: a.message.ClearField("recipients"),
}
#: Of an opening, which has no chunks.
OPENING_CHANGES = ENVELOPE_CHANGES | {
    **{name: change for name, change in ANY_CHANGES.items() if "chunk" not in name},
    "chunk added": lambda a: a.message.chunks.append(b""),
}
#: Of a request of a session.
SESSION_CHANGES: dict[str, Change] = {
    "another number": lambda a: setattr(a.message.session, "counter", a.message.session.counter + 1),
    "an end": _place(end=True),
    "another session": lambda a: setattr(a.message.session, "session_id", flipped(a.message.session.session_id, 0)),
    "another key": _place(key_id="A" * 43),
}
#: Of an answer in two chunks.
ANSWER_CHANGES: dict[str, Callable[[SealedInferResponse], object]] = {
    "nonce": lambda answer: setattr(answer, "nonce", flipped(answer.nonce, 0)),
    "no nonce": lambda answer: answer.ClearField("nonce"),
    "nonce cut": lambda answer: setattr(answer, "nonce", answer.nonce[:-1]),
    "nonce lengthened": lambda answer: setattr(answer, "nonce", answer.nonce + b"x"),
    "key id": lambda answer: setattr(answer, "key_id", "A" * 43),
    "no key id": lambda answer: answer.ClearField("key_id"),
    "chunk dropped": lambda answer: answer.chunks.pop(),
    "first chunk dropped": lambda answer: answer.chunks.pop(0),
    "no chunks": lambda answer: answer.ClearField("chunks"),
    "chunk doubled": lambda answer: answer.chunks.append(answer.chunks[-1]),
    "empty chunk added": lambda answer: answer.chunks.append(b""),
    "chunks swapped": lambda answer: answer.chunks.reverse(),
    "first bit of a chunk": lambda answer: answer.chunks.__setitem__(0, flipped(answer.chunks[0], 0)),
    "last bit of a chunk": lambda answer: answer.chunks.__setitem__(1, flipped(answer.chunks[1], -1)),
    "chunk cut": lambda answer: answer.chunks.__setitem__(0, answer.chunks[0][:-1]),
}
