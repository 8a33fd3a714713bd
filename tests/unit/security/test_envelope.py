"""Sealed payloads: only the chosen worker opens, and nothing that was touched opens at all."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from sealane.clock import ManualClock
from sealane.errors import InvalidArgument, SealaneError, Unauthenticated
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.rpc.call import Identity
from sealane.security import envelope, jws, suites
from sealane.security.envelope import Bound, Sealed, Target, seal
from sealane.security.opener import Opener, StaleKey
from sealane.security.sealed_chunks import CHUNK_BYTES

METHOD = "/inference.GRPCInferenceService/ModelInfer"

SENDER = Ed25519PrivateKey.generate()
THUMBPRINT = jws.thumbprint(SENDER.public_key().public_bytes_raw())
CLOCK = ManualClock()
CALLER = Identity("a", "p", frozenset({"infer"}), "token-1", THUMBPRINT)
DIGEST = "sha256:aa"
PLAIN = os.urandom(1000)


def bound(suite: int, **change: object) -> Bound:
    values: dict[str, object] = {
        "suite": suite,
        "project": "p",
        "deployment": "projects/p/deployments/d",
        "method": METHOD,
        "request_id": os.urandom(16),
        "token_id": "token-1",
        "issued_at_ms": int(CLOCK.now() * 1000),
    }
    return Bound(**(values | change))  # type: ignore[arg-type]


def sealed_for(pair: suites.KeyPair, plaintext: bytes = PLAIN, **change: object) -> Sealed:
    return seal(plaintext, bound(pair.suite, **change), [Target(pair.key_id, pair.public_key, DIGEST)], SENDER)


@pytest.fixture(params=[suites.HYBRID, suites.X25519], ids=["hybrid", "x25519"])
def pair(request: pytest.FixtureRequest) -> suites.KeyPair:
    return suites.generate(request.param)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_round_trip(pair: suites.KeyPair, size: int) -> None:
    plaintext = os.urandom(size)
    sent = sealed_for(pair, plaintext)
    opened = Opener(pair, CLOCK).open(sent.request, CALLER, DIGEST)
    assert opened.plaintext == plaintext
    assert sent.open(opened.seal(b"answer")) == b"answer"


def test_each_recipient_has_an_answer_key_of_its_own() -> None:
    first, second = suites.generate(suites.X25519), suites.generate(suites.X25519)
    targets = [Target(item.key_id, item.public_key, DIGEST) for item in (first, second)]
    sent = seal(PLAIN, bound(suites.X25519), targets, SENDER)
    opened = [Opener(item, CLOCK).open(sent.request, CALLER, DIGEST) for item in (first, second)]
    answer = opened[0].seal(b"mine")
    assert sent.open(answer) == b"mine"
    answer.key_id = second.key_id
    with pytest.raises(InvalidArgument):
        sent.open(answer)


Change = Callable[[pb.SealedInferRequest], None]
CHANGES: dict[str, Change] = {
    "deployment": lambda r: setattr(r, "deployment", "projects/p/deployments/e"),
    "method": lambda r: setattr(r, "method", "/other/Method"),
    "time": lambda r: setattr(r, "issued_at_ms", r.issued_at_ms + 1),
    "negative time": lambda r: setattr(r, "issued_at_ms", -1),
    "negative suite": lambda r: setattr(r, "suite", -1),
    "request id": lambda r: setattr(r, "request_id", os.urandom(16)),
    "version": lambda r: setattr(r, "version", 2),
    "suite": lambda r: setattr(r, "suite", 3 - r.suite),
    "variant": lambda r: setattr(r.recipients[0], "variant_digest", "sha256:bb"),
    "wrap": lambda r: setattr(r.recipients[0], "wrapped_key", bytes(len(r.recipients[0].wrapped_key))),
    "signature": lambda r: setattr(r, "signature", bytes(64)),
    "chunk dropped": lambda r: r.chunks.pop(),
    "chunk doubled": lambda r: r.chunks.append(r.chunks[-1]),
    "chunks swapped": lambda r: r.chunks.reverse(),
    "chunk flipped": lambda r: r.chunks.__setitem__(0, bytes([r.chunks[0][0] ^ 1]) + r.chunks[0][1:]),
    "recipient added": lambda r: r.recipients.add(key_id="x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_that_was_touched_opens(pair: suites.KeyPair, change: Change) -> None:
    sent = sealed_for(pair, os.urandom(2 * CHUNK_BYTES))
    change(sent.request)
    with pytest.raises(InvalidArgument) as caught:
        Opener(pair, CLOCK).open(sent.request, CALLER, DIGEST)
    assert caught.value.message == "cannot open sealed payload"


WORLDS: dict[str, tuple[Identity, str]] = {
    "other project": (Identity("a", "q", frozenset(), "token-1", THUMBPRINT), DIGEST),
    "other token": (Identity("a", "p", frozenset(), "token-2", THUMBPRINT), DIGEST),
    "other variant served": (CALLER, "sha256:bb"),
    "nothing served": (CALLER, ""),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_rerouted_request_does_not_open(pair: suites.KeyPair, world: tuple[Identity, str]) -> None:
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        Opener(pair, CLOCK).open(sealed_for(pair).request, *world)


def test_a_captured_token_cannot_make_a_sealed_request(pair: suites.KeyPair) -> None:
    thief = Ed25519PrivateKey.generate()
    sent = seal(PLAIN, bound(pair.suite), [Target(pair.key_id, pair.public_key, DIGEST)], thief)
    with pytest.raises(Unauthenticated):
        Opener(pair, CLOCK).open(sent.request, CALLER, DIGEST)
    sent.request.sender_key = SENDER.public_key().public_bytes_raw()
    with pytest.raises(InvalidArgument):
        Opener(pair, CLOCK).open(sent.request, CALLER, DIGEST)


def test_a_bearer_token_cannot_either(pair: suites.KeyPair) -> None:
    with pytest.raises(Unauthenticated):
        Opener(pair, CLOCK).open(sealed_for(pair).request, Identity("a", "p", frozenset(), "token-1", ""), DIGEST)


def test_it_runs_once_and_only_in_its_time(pair: suites.KeyPair) -> None:
    clock = ManualClock(CLOCK.now())
    opener, sent = Opener(pair, clock), sealed_for(pair)
    opener.open(sent.request, CALLER, DIGEST)
    with pytest.raises(InvalidArgument):
        opener.open(sent.request, CALLER, DIGEST)
    for seconds in (-61, 61):
        late = sealed_for(pair, issued_at_ms=int((CLOCK.now() + seconds) * 1000))
        with pytest.raises(InvalidArgument):
            Opener(pair, clock).open(late.request, CALLER, DIGEST)


def test_a_restarted_worker_says_so(pair: suites.KeyPair) -> None:
    restarted = Opener(suites.generate(pair.suite), CLOCK)
    with pytest.raises(StaleKey) as caught:
        restarted.open(sealed_for(pair).request, CALLER, DIGEST)
    assert (caught.value.kind, caught.value.reason) == ("FAILED_PRECONDITION", "STALE_SEALING_KEY")


def test_every_bit_of_a_small_envelope_counts() -> None:
    pair = suites.generate(suites.X25519)
    wire = sealed_for(pair, b"x" * 64).request.SerializeToString()
    for position in range(len(wire)):
        for bit in range(8):
            altered = bytearray(wire)
            altered[position] ^= 1 << bit
            request = pb.SealedInferRequest()
            try:
                request.ParseFromString(bytes(altered))
            except DecodeError:
                continue
            if request == pb.SealedInferRequest.FromString(wire):
                continue  # an unknown field: protobuf drops it before anybody looks
            with pytest.raises(SealaneError):
                Opener(pair, CLOCK).open(request, CALLER, DIGEST)


def test_a_prepared_envelope_seals_once_and_what_it_was_signed_for() -> None:
    pair, sender = suites.generate(suites.X25519), Ed25519PrivateKey.generate()
    bound = Bound(pair.suite, "p", "projects/p/deployments/d", "m", bytes(16), "t", 0)
    target = Target(pair.key_id, pair.public_key, "sha256:x")
    once = envelope.prepare(1, bound, [target], sender)
    once.seal(b"first")
    with pytest.raises(ValueError, match="one plaintext"):
        once.seal(b"second")
    with pytest.raises(ValueError, match="as many chunks"):
        envelope.prepare(1, bound, [target], sender).seal(bytes(CHUNK_BYTES + 1))
    assert "data_key" not in repr(envelope.prepare(1, bound, [target], sender))
