"""SEAL-1: whatever is done to a sealed request on its way, it does not open; and neither does a damaged answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import native_library
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from sealane.clock import ManualClock
from sealane.errors import InvalidArgument, SealaneError
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.rpc.call import Identity
from sealane.security import envelope, jws, suites
from sealane.security.envelope import Bound, Target, seal
from sealane.security.opener import Opener
from sealane.security.sealed_chunks import CHUNK_BYTES

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SENDER = Ed25519PrivateKey.generate()
THUMBPRINT = jws.thumbprint(SENDER.public_key().public_bytes_raw())
CALLER = Identity("a", "p", frozenset({"infer"}), "token-1", THUMBPRINT)
CLOCK = ManualClock()
VARIANT = "sha256:" + "ab" * 32
#: Every refusal a caller may see; what comes after the key id has one text.
PUBLIC = {"STALE_SEALING_KEY", "SENDER_KEY"}
BOTH = pytest.mark.parametrize("suite", [suites.HYBRID, suites.X25519], ids=["hybrid", "x25519"])


@pytest.fixture(autouse=True, params=native_library.OPENERS)
def opener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is opened in Python, and by the native library."""
    monkeypatch.setattr(sys.modules[__name__], "Opener", native_library.opener_of(request.param))


def bound(suite: int) -> Bound:
    now = int(CLOCK.now() * 1000)
    return Bound(suite, "p", "projects/p/deployments/camera", METHOD, os.urandom(16), "token-1", now)


def target(pair: suites.KeyPair) -> Target:
    return Target(pair.key_id, pair.public_key, VARIANT)


def envelope_of(pair: suites.KeyPair, wanted: int) -> bytes:
    """A serialized envelope of at least `wanted` bytes."""
    empty = len(seal(b"", bound(pair.suite), [target(pair)], SENDER).request.SerializeToString())
    content = os.urandom(max(0, wanted - empty))
    return seal(content, bound(pair.suite), [target(pair)], SENDER).request.SerializeToString()


def outcome(pair: suites.KeyPair, wire: bytes, original: pb.SealedInferRequest) -> str:
    """How a worker that has seen nothing yet takes a wire message."""
    try:
        request = pb.SealedInferRequest.FromString(wire)
    except DecodeError:
        return "MALFORMED"
    if request == original:
        return "SAME"  # an unknown field, which protobuf drops before anybody looks
    try:
        Opener(pair, CLOCK).open_body(wire, CALLER, lambda _: VARIANT)
    except SealaneError as error:
        assert error.reason in PUBLIC or error.message == "cannot open sealed payload", error
        return error.reason
    return "OPENED"


@BOTH
def test_every_bit_of_an_envelope(suite: int) -> None:
    pair = suites.generate(suite)
    wire = envelope_of(pair, 1024)
    original = pb.SealedInferRequest.FromString(wire)
    found: dict[str, int] = {}
    for position in range(len(wire)):
        for bit in range(8):
            altered = bytearray(wire)
            altered[position] ^= 1 << bit
            how = outcome(pair, bytes(altered), original)
            found[how] = found.get(how, 0) + 1
    print(f"figure: {suites.NAMES[suite]}: {8 * len(wire)} bits of {len(wire)} bytes flipped, 0 opened: {found}")
    assert len(wire) >= 1024
    assert "OPENED" not in found
    assert found.get("SAME", 0) < 100 and found["CANNOT_OPEN"] > 6 * len(wire)


@BOTH
def test_every_length_of_an_envelope(suite: int) -> None:
    pair = suites.generate(suite)
    wire = envelope_of(pair, 1024)
    original = pb.SealedInferRequest.FromString(wire)
    found = {outcome(pair, wire[:length], original) for length in range(len(wire))}
    assert not found & {"OPENED", "SAME"}


@BOTH
def test_every_bit_and_every_length_of_an_answer(suite: int) -> None:
    pair = suites.generate(suite)
    sent = seal(b"question", bound(suite), [target(pair)], SENDER)
    wire = Opener(pair, CLOCK).open(sent.request, CALLER, VARIANT).seal(os.urandom(400)).SerializeToString()
    original = pb.SealedInferResponse.FromString(wire)

    def damaged() -> Iterator[bytes]:
        for position in range(len(wire)):
            for bit in range(8):
                altered = bytearray(wire)
                altered[position] ^= 1 << bit
                yield bytes(altered)
            yield wire[:position]

    opened = 0
    for candidate in damaged():
        try:
            answer = pb.SealedInferResponse.FromString(candidate)
        except DecodeError:
            continue
        if answer == original:
            continue
        with pytest.raises(InvalidArgument):
            sent.open(answer)
        opened += 1
    assert opened > 6 * len(wire)


Change = Callable[[pb.SealedInferRequest], None]


def _swap(request: pb.SealedInferRequest, first: int, second: int) -> None:
    chunks = list(request.chunks)
    chunks[first], chunks[second] = chunks[second], chunks[first]
    del request.chunks[:]
    request.chunks.extend(chunks)


MOVED: dict[str, Change] = {
    "first and second": lambda r: _swap(r, 0, 1),
    "second and last": lambda r: _swap(r, 1, 2),
    "first left out": lambda r: r.chunks.pop(0),
    "last left out": lambda r: r.chunks.pop(),
    "last twice": lambda r: r.chunks.append(r.chunks[-1]),
    "first twice": lambda r: r.chunks.insert(0, r.chunks[0]),
    "last cut at its border": lambda r: r.chunks.__setitem__(2, b""),
    "two joined": lambda r: r.chunks.__setitem__(0, r.chunks[0] + r.chunks.pop(1)),
}


@BOTH
@pytest.mark.parametrize("change", MOVED.values(), ids=MOVED)
def test_chunks_that_were_moved(suite: int, change: Change) -> None:
    pair = suites.generate(suite)
    request = seal(os.urandom(2 * CHUNK_BYTES + 5), bound(suite), [target(pair)], SENDER).request
    assert len(request.chunks) == 3
    change(request)
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        Opener(pair, CLOCK).open(request, CALLER, VARIANT)


@BOTH
def test_chunks_of_another_request_of_the_same_sender(suite: int) -> None:
    pair = suites.generate(suite)
    first, second = (seal(os.urandom(64), bound(suite), [target(pair)], SENDER).request for _ in range(2))
    first.chunks[0] = second.chunks[0]
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        Opener(pair, CLOCK).open(first, CALLER, VARIANT)


#: What the sender binds -> another value of it, signed by the sender himself: not what the worker recomputes.
FIELDS: dict[str, object] = {
    "project": "q",
    "deployment": "projects/p/deployments/other",
    "method": "/tensorflow.serving.PredictionService/Predict",
    "request_id": bytes(16),
    "token_id": "token-2",
    "issued_at_ms": int(CLOCK.now() * 1000) + 1,
}


@BOTH
@pytest.mark.parametrize("field", FIELDS)
def test_info_with_one_field_changed(suite: int, field: str) -> None:
    """The key was wrapped under another `info` than the one that the signed envelope says."""
    pair = suites.generate(suite)
    said = bound(suite)
    wrapped = seal(b"x", replace(said, **{field: FIELDS[field]}), [target(pair)], SENDER)  # type: ignore[arg-type]
    request = wrapped.request
    request.deployment, request.method = said.deployment, said.method
    request.request_id, request.issued_at_ms = said.request_id, said.issued_at_ms
    digest = envelope.envelope_hash(said, request.sender_key, len(request.chunks), request.recipients)
    request.signature = SENDER.sign(digest)  # so that it is the wrapped key that does not open, and not the signature
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        Opener(pair, CLOCK).open(request, CALLER, VARIANT)


@BOTH
def test_info_with_another_variant_or_key_or_suite(suite: int) -> None:
    pair, other = suites.generate(suite), suites.generate(suite)
    variant = seal(b"x", bound(suite), [replace(target(pair), variant_digest="sha256:other")], SENDER)
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        Opener(pair, CLOCK).open(variant.request, CALLER, VARIANT)
    key_id = seal(b"x", bound(suite), [replace(target(pair), key_id=other.key_id)], SENDER)
    key_id.request.recipients[0].key_id = pair.key_id
    digest = envelope.envelope_hash(
        replace(bound(suite), request_id=key_id.request.request_id, issued_at_ms=key_id.request.issued_at_ms),
        key_id.request.sender_key,
        1,
        key_id.request.recipients,
    )
    key_id.request.signature = SENDER.sign(digest)
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        Opener(pair, CLOCK).open(key_id.request, CALLER, VARIANT)
    downgraded = seal(b"x", bound(suite), [target(pair)], SENDER).request
    downgraded.suite = pb.Suite.ValueType(suites.X25519 + suites.HYBRID - suite)
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        Opener(pair, CLOCK).open(downgraded, CALLER, VARIANT)


@BOTH
def test_an_encapsulated_key_of_another_recipient(suite: int) -> None:
    pairs = [suites.generate(suite) for _ in range(2)]
    request = seal(b"x", bound(suite), [target(pair) for pair in pairs], SENDER).request
    first, second = request.recipients[0].wrapped_key, request.recipients[1].wrapped_key
    request.recipients[0].wrapped_key, request.recipients[1].wrapped_key = second, first
    for pair in pairs:
        with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
            Opener(pair, CLOCK).open(request, CALLER, VARIANT)


@BOTH
def test_replays_at_the_same_and_at_another_candidate(suite: int) -> None:
    """A second candidate may run it once too, since it was sealed to it; one that was not chosen never."""
    pairs = [suites.generate(suite) for _ in range(3)]
    openers = [Opener(pair, CLOCK) for pair in pairs]
    sent = seal(b"x", bound(suite), [target(pair) for pair in pairs[:2]], SENDER)
    for opener in openers[:2]:
        assert opener.open(sent.request, CALLER, VARIANT).plaintext == b"x"
        for _ in range(3):
            with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
                opener.open(sent.request, CALLER, VARIANT)
    with pytest.raises(SealaneError) as told:
        openers[2].open(sent.request, CALLER, VARIANT)
    assert told.value.reason == "STALE_SEALING_KEY"


@BOTH
def test_replays_within_the_window_after_it_and_after_a_restart(suite: int) -> None:
    clock, pair = ManualClock(CLOCK.now()), suites.generate(suite)
    opener = Opener(pair, clock)
    sent = seal(b"x", bound(suite), [target(pair)], SENDER)
    opener.open(sent.request, CALLER, VARIANT)
    for seconds in (1, 58, 2, 60, 200):
        clock.advance(seconds)
        with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
            opener.open(sent.request, CALLER, VARIANT)
    with pytest.raises(SealaneError) as told:
        Opener(suites.generate(suite), clock).open(sent.request, CALLER, VARIANT)
    assert told.value.reason == "STALE_SEALING_KEY"


@BOTH
@pytest.mark.parametrize(("seconds", "opens"), [(-61, False), (-59, True), (59, True), (61, False)])
def test_the_time_at_which_it_was_sealed(suite: int, seconds: int, opens: bool) -> None:
    pair = suites.generate(suite)
    said = replace(bound(suite), issued_at_ms=int((CLOCK.now() + seconds) * 1000))
    request = seal(b"x", said, [target(pair)], SENDER).request
    if opens:
        assert Opener(pair, CLOCK).open(request, CALLER, VARIANT).plaintext == b"x"
        return
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        Opener(pair, CLOCK).open(request, CALLER, VARIANT)


@BOTH
def test_answers_swapped_between_two_requests(suite: int) -> None:
    pair = suites.generate(suite)
    sent = [seal(b"x", bound(suite), [target(pair)], SENDER) for _ in range(2)]
    answers = [Opener(pair, CLOCK).open(item.request, CALLER, VARIANT).seal(b"y") for item in sent]
    for item, answer in zip(sent, reversed(answers), strict=True):
        with pytest.raises(InvalidArgument, match="cannot open the sealed answer"):
            item.open(answer)
    for item, answer in zip(sent, answers, strict=True):
        assert item.open(answer) == b"y"


@BOTH
@pytest.mark.parametrize("size", [0, 60 << 20], ids=["empty", "60 MiB"])
def test_the_smallest_and_the_largest_payload(suite: int, size: int) -> None:
    pair, content = suites.generate(suite), bytes(size)
    sent = seal(content, bound(suite), [target(pair)], SENDER)
    opened = Opener(pair, CLOCK).open(sent.request, CALLER, VARIANT)
    assert opened.plaintext == content
    assert sent.open(opened.seal(content)) == content
