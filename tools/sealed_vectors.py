"""Writes the test vectors of the sealed protocol, tests/vectors/sealed/*.json, with `sealane.security`.

Each run makes others: encapsulation, keys and nonces are random, and nothing in the library can set them. What the
files hold is described in tests/vectors/README.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from google.rpc import code_pb2, status_pb2

from sealane.clock import ManualClock
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import sealed
from sealane.rpc.call import Identity
from sealane.security import envelope, jws, suites
from sealane.security.envelope import ANSWER, STATUS, Bound, Sealed, Target
from sealane.security.length_prefixed import lp
from sealane.security.opener import Opened, Opener
from sealane.security.sealed_session import ClientSession

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "sealed"
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
PROJECT, DEPLOYMENT, TOKEN, LATER_TOKEN = "p1", "projects/p1/deployments/triage", "token-1", "token-2"
#: 2027, the time at which a ManualClock stands.
ISSUED_AT_MS = 1_800_000_000_000
LARGE = (1 << 20) + 1000
RULE = "byte i is i mod 251"

Json = dict[str, Any]


def pair_of(suite: int, private: bytes) -> suites.KeyPair:
    """The key pair of 32 bytes: an X25519 key, or the seed that X-Wing expands by SHAKE256."""
    if suite == suites.X25519:
        return suites.pair_of(X25519PrivateKey.from_private_bytes(private))
    both = hashlib.shake_256(private).digest(96)
    lattice = MLKEM768PrivateKey.from_seed_bytes(both[:64])
    return suites.pair_of(X25519PrivateKey.from_private_bytes(both[64:]), lattice)


def by_rule(length: int) -> bytes:
    """A plaintext that a vector tells by its length alone."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def told(plaintext: bytes) -> Json:
    """How a vector tells a plaintext."""
    if len(plaintext) < LARGE:
        return {"hex": plaintext.hex()}
    return {"length": len(plaintext), "rule": RULE}


def on_wire(message: pb.SealedInferRequest | pb.SealedInferResponse) -> Json:
    """A message; in the place of chunks that are too large to keep, their SHA-256."""
    if sum(map(len, message.chunks)) < LARGE:
        return {"message": _base64(message.SerializeToString())}
    digests = [hashlib.sha256(chunk).hexdigest() for chunk in message.chunks]
    kept = type(message).FromString(message.SerializeToString())
    del kept.chunks[:]
    return {"message": _base64(kept.SerializeToString()), "chunks_sha256": digests}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Maker:
    """Makes the vectors of one suite."""

    def __init__(self, suite: int) -> None:
        self._suite = suite
        self._privates = [os.urandom(32) for _ in range(2)]
        self._pairs = [pair_of(suite, private) for private in self._privates]
        self._variants = ["sha256:" + hashlib.sha256(bytes([index])).hexdigest() for index in range(2)]
        self._sender = Ed25519PrivateKey.generate()
        self._sender_key = self._sender.public_key().public_bytes_raw()
        self._openers = [Opener(pair, ManualClock(ISSUED_AT_MS / 1000)) for pair in self._pairs]

    def document(self) -> Json:
        """All of them."""
        return {
            "made_by": "tools/sealed_vectors.py",
            "suite": self._suite,
            "name": suites.NAMES[self._suite],
            "sender": {
                "private_key": self._sender.private_bytes_raw().hex(),
                "public_key": self._sender_key.hex(),
                "thumbprint": jws.thumbprint(self._sender_key),
            },
            "workers": [
                {
                    "private_key": private.hex(),
                    "public_key": pair.public_key.hex(),
                    "key_id": pair.key_id,
                    "variant_digest": variant,
                }
                for private, pair, variant in zip(self._privates, self._pairs, self._variants, strict=True)
            ],
            "requests": [self._request(by_rule(size), workers) for workers in (1, 2) for size in (0, 1, 1000, LARGE)],
            "session": self._session(
                sealed.OPEN_SESSION, [(b"", False, TOKEN), (by_rule(1000), False, TOKEN), (b"x", False, LATER_TOKEN)]
            ),
            "stream": self._session(
                sealed.OPEN_STREAM, [(b"first", False, TOKEN), (b"second", False, TOKEN), (b"", True, TOKEN)]
            ),
        }

    def _request(self, plaintext: bytes, workers: int) -> Json:
        bound = self._bound(INFER if workers == 1 else PREDICT)
        made = envelope.seal(plaintext, bound, [self._target(index) for index in range(workers)], self._sender)
        answers = [ANSWER + plaintext, STATUS + status_pb2.Status(code=code_pb2.NOT_FOUND).SerializeToString()]
        # The rule's first byte is 0 too, so that a large answer is told by it.
        answers[0] = plaintext if len(plaintext) == LARGE else answers[0]
        opened = [
            self._openers[index].open(made.request, self._caller(), self._variants[index]) for index in range(workers)
        ]
        document = self._envelope(made, bound, workers)
        return document | {
            "plaintext": told(plaintext),
            "answers": [self._answer_by(document, index, opened[index], answers[index]) for index in range(workers)],
        }

    def _session(self, method: str, requests: list[tuple[bytes, bool, str]]) -> Json:
        bound = self._bound(method)
        session = ClientSession(bound, self._target(0), self._sender)
        opener = self._openers[0]
        opened = opener.open_session(session.opening.request, self._caller(), self._variants[0])
        answer = ANSWER + pb.SealedSession(lifetime_seconds=600, max_requests=10_000).SerializeToString()
        opening = self._envelope(session.opening, bound, 1)
        opening["answers"] = [self._answer_by(opening, 0, opened, answer)]
        opening["session_secret"] = opening.pop("data_key")
        secret = bytes.fromhex(opening["session_secret"])
        info = lp("sealane/session/v1", self._pairs[0].key_id, bound.request_id)
        keys = HKDFExpand(hashes.SHA256(), 64, info).derive(secret)
        return {
            "opening": opening,
            "requests": [self._placed(session, keys, *request) for request in requests],
        }

    def _placed(self, session: ClientSession, keys: bytes, plaintext: bytes, end: bool, token: str) -> Json:
        made = session.seal(plaintext, INFER, token, ISSUED_AT_MS, end=end)
        place = made.request.session
        opened = self._openers[0].open(made.request, self._caller(token), self._variants[0])
        return {
            "project": PROJECT,
            "deployment": DEPLOYMENT,
            "variant_digest": self._variants[0],
            "method": INFER,
            "session_id": place.session_id.hex(),
            "counter": place.counter,
            "end": place.end,
            "token_id": token,
            "issued_at_ms": ISSUED_AT_MS,
            "plaintext": told(plaintext),
            "request_key": keys[:32].hex(),
            "answer_key": keys[32:].hex(),
            "request_hash": made.digest.hex(),
            **on_wire(made.request),
            "answers": [self._answer(0, opened, ANSWER if end else ANSWER + b"answer to " + plaintext, keys[32:])],
        }

    def _envelope(self, made: Sealed, bound: Bound, workers: int) -> Json:
        infos = [envelope.info_of(bound, self._pairs[i].key_id, self._variants[i]) for i in range(workers)]
        recipients = made.request.recipients
        both = [suites.unwrap(self._suite, self._pairs[i], recipients[i].wrapped_key, infos[i]) for i in range(workers)]
        return {
            "project": PROJECT,
            "deployment": bound.deployment,
            "method": bound.method,
            "request_id": bound.request_id.hex(),
            "token_id": bound.token_id,
            "issued_at_ms": bound.issued_at_ms,
            "data_key": both[0][: envelope.KEY_BYTES].hex(),
            "recipients": [
                {
                    "worker": index,
                    "info": info.hex(),
                    "response_secret": both[index][envelope.KEY_BYTES :].hex(),
                }
                for index, info in enumerate(infos)
            ],
            "envelope_hash": made.digest.hex(),
            **on_wire(made.request),
        }

    def _answer_by(self, document: Json, worker: int, opened: Opened, plaintext: bytes) -> Json:
        """An answer to an envelope, whose key follows from its nonce."""
        answer = opened.seal(plaintext)
        secret = bytes.fromhex(document["recipients"][worker]["response_secret"])
        digest = bytes.fromhex(document["envelope_hash"])
        key = envelope.response_key(answer.nonce, secret, self._pairs[worker].key_id, digest)
        return {"worker": worker, "response_key": key.hex(), "plaintext": told(plaintext), **on_wire(answer)}

    def _answer(self, worker: int, opened: Opened, plaintext: bytes, key: bytes) -> Json:
        answer = opened.seal(plaintext)
        return {"worker": worker, "response_key": key.hex(), "plaintext": told(plaintext), **on_wire(answer)}

    def _bound(self, method: str) -> Bound:
        return Bound(
            suite=self._suite,
            project=PROJECT,
            deployment=DEPLOYMENT,
            method=method,
            request_id=os.urandom(envelope.NONCE_BYTES),
            token_id=TOKEN,
            issued_at_ms=ISSUED_AT_MS,
        )

    def _target(self, index: int) -> Target:
        pair = self._pairs[index]
        return Target(pair.key_id, pair.public_key, self._variants[index])

    def _caller(self, token: str = TOKEN) -> Identity:
        return Identity("somebody", PROJECT, token_id=token, key_thumbprint=jws.thumbprint(self._sender_key))


def main() -> None:
    """Write a file for each suite."""
    FOLDER.mkdir(exist_ok=True)
    for suite, name in suites.NAMES.items():
        (FOLDER / f"{name.lower()}.json").write_text(json.dumps(Maker(suite).document(), indent=1) + "\n")


if __name__ == "__main__":
    main()
