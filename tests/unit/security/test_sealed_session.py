"""Sealed sessions: each request opens once, where it was sealed for, and under its own session alone."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from native_library import OPENERS, ThroughLibrary

from sealane.clock import ManualClock
from sealane.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, SealaneError, Unauthenticated
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols.sealed import OPEN_SESSION, OPEN_STREAM
from sealane.rpc.call import Identity
from sealane.security import envelope, jws, sealed_chunks, suites
from sealane.security.envelope import ANSWER, Bound, Target
from sealane.security.kept_sessions import IDLE_SECONDS, KeptSessions, Owner
from sealane.security.length_prefixed import lp
from sealane.security.opener import Opener, StaleKey
from sealane.security.sealed_chunks import CHUNK_BYTES
from sealane.security.sealed_session import LIFETIME_SECONDS, MAX_REQUESTS, ClientSession, SessionCiphers, prefix_of

METHOD = "/inference.GRPCInferenceService/ModelInfer"
DEPLOYMENT = "projects/p/deployments/d"
DIGEST = "sha256:aa"
SENDER = Ed25519PrivateKey.generate()
THUMBPRINT = jws.thumbprint(SENDER.public_key().public_bytes_raw())
CIPHERS = SessionCiphers(bytes(32), "key", b"session")
CALLER = Identity("a", "p", frozenset({"infer"}), "token-1", THUMBPRINT)


@pytest.fixture(scope="module", autouse=True, params=OPENERS)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything is opened in Python, and by the native library."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Pair, "native", request.param is not Opener)
        yield


class Pair:
    """A worker and a client that agree on a session."""

    native = False
    """Whether both halves are the native library's."""

    def __init__(self, suite: int = suites.X25519, method: str = OPEN_SESSION, sessions: int = 16) -> None:
        self.clock = ManualClock()
        self.pair = suites.generate(suite)
        if self.native:
            self.opener: Opener = ThroughLibrary(self.pair, self.clock, sessions=sessions)
        else:
            self.opener = Opener(self.pair, self.clock, sessions=KeptSessions(self.clock, of_sender=sessions))
        self.method = method
        self.session = self.open()

    def now_ms(self) -> int:
        return int(self.clock.now() * 1000)

    def client(self, sender: Ed25519PrivateKey = SENDER, token_id: str = "token-1") -> ClientSession:
        bound = Bound(self.pair.suite, "p", DEPLOYMENT, self.method, os.urandom(16), token_id, self.now_ms())
        target = Target(self.pair.key_id, self.pair.public_key, DIGEST)
        return ClientSession(bound, target, sender, native=self.native)

    def open(self) -> ClientSession:
        session = self.client()
        opened = self.opener.open_session(session.opening.request, CALLER, DIGEST)
        assert session.opening.open(opened.seal(ANSWER)) == ANSWER
        return session

    def seal(self, plaintext: bytes = b"tensors", *, end: bool = False) -> envelope.Sealed:
        return self.session.seal(plaintext, METHOD, "token-1", self.now_ms(), end=end)

    def read(self, request: pb.SealedInferRequest, caller: Identity = CALLER, digest: str = DIGEST) -> bytes:
        return self.opener.open(request, caller, digest).plaintext


@pytest.fixture(params=[suites.HYBRID, suites.X25519], ids=["hybrid", "x25519"])
def both(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES + 1])
def test_request_and_answer(both: Pair, size: int) -> None:
    plaintext = os.urandom(size)
    sent = both.seal(plaintext)
    opened = both.opener.open(sent.request, CALLER, DIGEST)
    assert (opened.plaintext, opened.method) == (plaintext, METHOD)
    assert sent.open(opened.seal(b"answer")) == b"answer"


def test_no_two_requests_share_a_key(both: Pair) -> None:
    first, second = both.seal(), both.seal()
    assert first.request.chunks != second.request.chunks
    answer = both.opener.open(first.request, CALLER, DIGEST).seal(b"mine")
    both.opener.open(second.request, CALLER, DIGEST)
    with pytest.raises(InvalidArgument, match="cannot open the sealed answer"):
        second.open(answer)


def test_a_plaintext_is_not_kept(both: Pair) -> None:
    """Not even until the collector finds a circle: it is large, and it was sealed."""
    both.opener.open(both.seal().request, CALLER, DIGEST)
    gc.disable()
    try:
        opened = both.opener.open(both.seal(os.urandom(100)).request, CALLER, DIGEST)
        plaintext = opened.plaintext
        held = sys.getrefcount(plaintext)
        opened.answer(b"answer")
        del opened
        assert sys.getrefcount(plaintext) == held - 1
    finally:
        gc.enable()


def test_requests_arrive_in_any_order_and_each_runs_once(both: Pair) -> None:
    sent = [both.seal(bytes([index])) for index in range(20)]
    for item in reversed(sent):
        both.read(item.request)
    for item in sent:
        with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
            both.read(item.request)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=80))
def test_whatever_the_order_each_number_is_taken_once(order: list[int]) -> None:
    pair = Pair()
    sent = [pair.seal() for _ in range(41)]
    taken: set[int] = set()
    for number in order:
        try:
            pair.read(sent[number].request)
        except InvalidArgument:
            assert number in taken
        else:
            assert number not in taken
            taken.add(number)


Change = Callable[[pb.SealedInferRequest], None]
CHANGES: dict[str, Change] = {
    "deployment": lambda r: setattr(r, "deployment", "projects/p/deployments/e"),
    "method": lambda r: setattr(r, "method", "/tensorflow.serving.PredictionService/Predict"),
    "no such method": lambda r: setattr(r, "method", "/x/Y"),
    "opening method": lambda r: setattr(r, "method", OPEN_SESSION),
    "time": lambda r: setattr(r, "issued_at_ms", r.issued_at_ms + 1),
    "negative time": lambda r: setattr(r, "issued_at_ms", -1),
    "old": lambda r: setattr(r, "issued_at_ms", r.issued_at_ms - 61_000),
    "early": lambda r: setattr(r, "issued_at_ms", r.issued_at_ms + 61_000),
    "version": lambda r: setattr(r, "version", 2),
    "suite": lambda r: setattr(r, "suite", 3 - r.suite),
    "counter": lambda r: setattr(r.session, "counter", r.session.counter + 1),
    "counter past the end": lambda r: setattr(r.session, "counter", 2**32 - 1),
    "end": lambda r: setattr(r.session, "end", True),
    "recipients too": lambda r: r.recipients.add(key_id="x"),
    "no chunk": lambda r: r.chunks.pop(),
    "chunk doubled": lambda r: r.chunks.append(r.chunks[-1]),
    "chunk flipped": lambda r: r.chunks.__setitem__(0, bytes([r.chunks[0][0] ^ 1]) + r.chunks[0][1:]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_that_was_touched_opens_and_no_number_is_used_up(both: Pair, change: Change) -> None:
    sent = both.seal()
    altered = pb.SealedInferRequest.FromString(sent.request.SerializeToString())
    change(altered)
    with pytest.raises(InvalidArgument) as told:
        both.read(altered)
    assert told.value.message == "cannot open sealed payload"
    assert both.read(sent.request) == b"tensors"


WORLDS: dict[str, tuple[Identity, str]] = {
    "other project": (replace(CALLER, project="q"), DIGEST),
    "other token": (replace(CALLER, token_id="token-2"), DIGEST),
    "other variant served": (CALLER, "sha256:bb"),
    "nothing served": (CALLER, ""),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_rerouted_request_does_not_open(both: Pair, world: tuple[Identity, str]) -> None:
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        both.read(both.seal().request, *world)


def test_a_session_is_of_no_use_to_another_sender(both: Pair) -> None:
    with pytest.raises(Unauthenticated) as told:
        both.read(both.seal().request, replace(CALLER, key_thumbprint="thief"))
    assert told.value.reason == "SENDER_KEY"


def test_every_bit_of_a_session_request_counts() -> None:
    pair = Pair()
    sent = pair.seal(b"x" * 64).request
    wire, refused = sent.SerializeToString(), 0
    for position in range(len(wire)):
        for bit in range(8):
            altered = bytearray(wire)
            altered[position] ^= 1 << bit
            try:
                request = pb.SealedInferRequest.FromString(bytes(altered))
            except DecodeError:
                continue
            if request == sent:
                continue  # an unknown field: protobuf drops it before anybody looks
            with pytest.raises(SealaneError):
                pair.read(request)
            refused += 1
    assert refused > 4 * len(wire)
    assert pair.read(sent) == b"x" * 64


def test_an_opening_is_not_a_request_nor_the_other_way_round(both: Pair) -> None:
    session = both.client()
    with pytest.raises(InvalidArgument):
        both.read(session.opening.request)
    with pytest.raises(InvalidArgument):
        both.opener.open_session(both.seal().request, CALLER, DIGEST)
    bound = Bound(both.pair.suite, "p", DEPLOYMENT, METHOD, os.urandom(16), "token-1", both.now_ms())
    request = envelope.seal(b"x", bound, [Target(both.pair.key_id, both.pair.public_key, DIGEST)], SENDER).request
    with pytest.raises(InvalidArgument):
        both.opener.open_session(request, CALLER, DIGEST)


def test_an_opening_that_is_replayed_opens_nothing(both: Pair) -> None:
    with pytest.raises(InvalidArgument, match="cannot open sealed payload"):
        both.opener.open_session(both.session.opening.request, CALLER, DIGEST)


def test_a_captured_token_opens_no_session(both: Pair) -> None:
    with pytest.raises(Unauthenticated):
        both.opener.open_session(both.client(Ed25519PrivateKey.generate()).opening.request, CALLER, DIGEST)


def test_a_session_ends_in_time_and_says_so(both: Pair) -> None:
    both.clock.advance(LIFETIME_SECONDS - 1)
    both.read(both.seal().request)
    both.clock.advance(2)
    with pytest.raises(FailedPrecondition) as told:
        both.read(both.seal().request)
    assert told.value.reason == "STALE_SEALED_SESSION"


def test_a_session_takes_ten_thousand_requests(both: Pair) -> None:
    both.session._next = MAX_REQUESTS - 1
    both.read(both.seal().request)
    with pytest.raises(InvalidArgument):
        both.read(both.seal().request)


def test_a_restarted_worker_says_so(both: Pair) -> None:
    both.opener = Opener(suites.generate(both.pair.suite), both.clock)
    with pytest.raises(StaleKey):
        both.read(both.seal().request)


def test_a_session_that_is_ended_is_over(both: Pair) -> None:
    end = both.seal(b"", end=True)
    assert both.opener.open(end.request, CALLER, DIGEST).end
    with pytest.raises(FailedPrecondition):
        both.read(both.seal().request)


def test_a_sender_that_opens_too_many_loses_its_oldest_alone() -> None:
    pair = Pair(sessions=2)
    oldest, others = pair.session, [pair.open(), pair.open()]
    with pytest.raises(FailedPrecondition):
        pair.read(oldest.seal(b"", METHOD, "token-1", pair.now_ms()).request)
    for session in others:
        pair.read(session.seal(b"", METHOD, "token-1", pair.now_ms()).request)


def keep(kept: KeptSessions, name: bytes, sender: str, project: str = "p", *, ordered: bool = False) -> bool:
    return kept.keep(name, CIPHERS, Owner(sender, project), ordered=ordered)


def test_sessions_are_bounded_and_come_free_in_time() -> None:
    clock = ManualClock()
    kept = KeptSessions(clock, capacity=4)
    for index in range(4):
        assert keep(kept, bytes([index]), f"sender-{index}", "pq"[index % 2])
    with pytest.raises(ResourceExhausted) as told:
        keep(kept, b"x", "sender-x", "r")
    assert told.value.reason == "SEALED_SESSIONS"
    clock.advance(LIFETIME_SECONDS)
    assert keep(kept, b"x", "sender-x", "r")
    assert len(kept) == 1
    assert "ciphers" not in repr(kept.find(b"x"))


def test_one_project_does_not_take_all_sessions() -> None:
    kept = KeptSessions(ManualClock(), capacity=4)
    for index in range(2):
        assert keep(kept, bytes([index]), f"sender-{index}", "greedy")
    with pytest.raises(ResourceExhausted):
        keep(kept, b"x", "sender-x", "greedy")
    assert keep(kept, b"y", "sender-y", "other")
    kept.end(bytes([0]))
    assert keep(kept, b"x", "sender-x", "greedy"), "an ended one makes room"


def test_an_id_that_is_kept_is_not_taken_over() -> None:
    kept = KeptSessions(ManualClock())
    assert keep(kept, b"x", "victim")
    assert not keep(kept, b"x", "thief")
    assert kept.find(b"x").sender == "victim"


def test_a_stream_does_not_give_way_while_it_is_used() -> None:
    clock = ManualClock()
    kept = KeptSessions(clock, of_sender=2)
    assert keep(kept, b"stream", "s", ordered=True)
    assert keep(kept, b"session", "s")
    assert keep(kept, b"newer", "s", ordered=True), "the session gave way, though it was newer"
    with pytest.raises(FailedPrecondition):
        kept.find(b"session")
    with pytest.raises(ResourceExhausted):
        keep(kept, b"more", "s", ordered=True)
    clock.advance(IDLE_SECONDS - 1)
    kept.find(b"stream")
    clock.advance(1)
    assert keep(kept, b"more", "s", ordered=True), "what carried the idle one may be gone"
    kept.find(b"stream")
    with pytest.raises(FailedPrecondition):
        kept.find(b"newer")


def test_keys_are_those_of_the_library_and_nonces_never_come_twice() -> None:
    """HKDF is written out for speed; here it is held against the library's."""
    info = lp("sealane/session/v1", "key", b"session")
    expected = HKDFExpand(hashes.SHA256(), 64, info).derive(bytes(range(32)))
    ciphers = SessionCiphers(bytes(range(32)), "key", b"session")
    for cipher, key, direction in (
        (ciphers.requests, expected[:32], b"request"),
        (ciphers.answers, expected[32:], b"response"),
    ):
        (chunk,) = cipher.seal(b"digest", b"plaintext", prefix_of(7))
        nonce, bound = bytes.fromhex("000000070000000000000001"), lp(direction, b"digest", 0)
        assert AESGCM(key).decrypt(nonce, chunk, bound) == b"plaintext"
    nonces = {
        sealed_chunks._nonce(prefix_of(n), i, total) for n in (0, 1, 9999) for total in (1, 64) for i in range(total)
    }
    assert len(nonces) == 3 * (64 + 1)
    secret, salt = os.urandom(32), os.urandom(16)
    library = HKDF(hashes.SHA256(), 32, salt, lp("sealane/response/v1", "key", b"digest")).derive(secret)
    assert envelope.response_key(salt, secret, "key", b"digest") == library


class TestStream:
    """A session whose requests come one after the other."""

    @pytest.fixture
    def stream(self) -> Pair:
        return Pair(method=OPEN_STREAM)

    def test_in_order(self, stream: Pair) -> None:
        for index in range(5):
            assert stream.read(stream.seal(bytes([index])).request) == bytes([index])

    def test_a_message_that_was_left_out_shows(self, stream: Pair) -> None:
        stream.seal()
        with pytest.raises(InvalidArgument):
            stream.read(stream.seal().request)

    def test_a_message_that_was_repeated_shows(self, stream: Pair) -> None:
        sent = stream.seal()
        stream.read(sent.request)
        with pytest.raises(InvalidArgument):
            stream.read(sent.request)

    def test_the_end_comes_once_and_after_all_others(self, stream: Pair) -> None:
        left_out, end = stream.seal(), stream.seal(b"", end=True)
        with pytest.raises(InvalidArgument):
            stream.read(end.request)
        stream.read(left_out.request)
        stream.read(end.request)
        with pytest.raises(FailedPrecondition):
            stream.read(end.request)


def test_an_opening_that_names_a_session_which_is_kept_does_not_open(both: Pair) -> None:
    """Its id is no secret; the replay memory forgets it before the session ends."""
    both.clock.advance(200.0)
    thief = Ed25519PrivateKey.generate()
    caller = replace(CALLER, key_thumbprint=jws.thumbprint(thief.public_key().public_bytes_raw()))
    session_id = both.session.opening.request.request_id
    bound = Bound(both.pair.suite, "p", DEPLOYMENT, OPEN_SESSION, session_id, "token-1", both.now_ms())
    forged = ClientSession(bound, Target(both.pair.key_id, both.pair.public_key, DIGEST), thief)
    with pytest.raises(InvalidArgument) as told:
        both.opener.open_session(forged.opening.request, caller, DIGEST)
    assert told.value.reason == "CANNOT_OPEN"
    assert both.read(both.seal().request) == b"tensors"
