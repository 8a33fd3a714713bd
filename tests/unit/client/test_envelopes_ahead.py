"""Which of the envelopes made ahead are used, and how often."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.client import envelopes_ahead
from sealane.client.envelopes_ahead import EnvelopesAhead
from sealane.clock import SystemClock
from sealane.errors import InvalidArgument
from sealane.rpc.call import Identity
from sealane.security import jws, native_envelope, suites
from sealane.security.envelope import Bound, Prepared, Target
from sealane.security.opener import Opener

INFER = "/inference.GRPCInferenceService/ModelInfer"


def envelope(name: str) -> Prepared:
    return Prepared(name.encode(), 1, b"", b"", {})


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def made(ahead: EnvelopesAhead, kind: str, name: str = "first") -> None:
    done = threading.Event()

    def make() -> Prepared:
        done.set()
        return envelope(name)

    ahead.make(kind, make)
    assert done.wait(10)
    until(lambda: kind in ahead._kept and kind not in ahead._making)


def test_each_is_given_out_once() -> None:
    ahead = EnvelopesAhead()
    assert ahead.take("a") is None
    made(ahead, "a")
    barrier, taken = threading.Barrier(8), list[Prepared | None]()

    def take() -> None:
        barrier.wait()
        taken.append(ahead.take("a"))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item.head for item in taken if item) == [b"first"]


def test_one_kind_is_not_given_for_another() -> None:
    ahead = EnvelopesAhead()
    made(ahead, "a")
    assert ahead.take("b") is None
    assert ahead.take("a") is not None


def test_one_is_made_at_a_time_and_none_where_one_is_kept() -> None:
    ahead, go, calls = EnvelopesAhead(), threading.Event(), list[str]()

    def make() -> Prepared:
        calls.append("called")
        assert go.wait(10)
        return envelope("first")

    ahead.make("a", make)
    ahead.make("a", make)  # one is being made
    go.set()
    until(lambda: "a" in ahead._kept and "a" not in ahead._making)
    ahead.make("a", make)  # one is kept
    made(ahead, "b")
    assert calls == ["called"]


def test_an_old_one_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = EnvelopesAhead()
    made(ahead, "a")
    made(ahead, "b")
    monkeypatch.setattr(envelopes_ahead, "FRESH_SECONDS", 0.0)
    assert ahead.take("a") is None
    made(ahead, "c")
    assert "b" not in ahead._kept, "its secrets lie about"


def test_one_that_fails_leaves_room_for_the_next() -> None:
    ahead = EnvelopesAhead()

    def make() -> Prepared:
        raise ValueError

    ahead.make("a", make)
    until(lambda: "a" not in ahead._making)
    assert ahead.take("a") is None
    made(ahead, "a", "second")
    assert ahead.take("a") == envelope("second")


def test_a_process_that_was_forked_off_does_not_use_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, parent = EnvelopesAhead(), os.getpid()
    made(ahead, "a")
    monkeypatch.setattr("os.getpid", lambda: parent + 1)
    assert ahead.take("a") is None
    made(ahead, "a", "second")
    assert ahead.take("a") == envelope("second")


def test_one_is_not_used_after_the_machine_slept(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = EnvelopesAhead()
    made(ahead, "a")
    later = time.time() + 3600
    monkeypatch.setattr("time.time", lambda: later)
    assert ahead.take("a") is None


@pytest.mark.skipif(not native_envelope.installed(), reason="the native library is not installed: make native")
class TestNative:
    """Those that the library makes in a thread of its own."""

    def test_a_key_that_cannot_be_sealed_to_is_told_by_whoever_seals(self) -> None:
        made = prepared_for(bytes(32))
        with pytest.raises(InvalidArgument, match="cannot be sealed to"):
            made.seal(b"x")

    def test_answers_of_a_later_version_open(self) -> None:
        """What is added beside the sealed answer is passed over, as protobuf does it."""
        pair, sender = suites.generate(suites.X25519), Ed25519PrivateKey.generate()
        now = int(time.time() * 1000)
        bound = Bound(pair.suite, "p", "projects/p/deployments/d", INFER, os.urandom(16), "token", now)
        target = Target(pair.key_id, pair.public_key, "sha256:x")
        sent = native_envelope.prepare(1, bound, [target], sender).seal(b"question")
        caller = Identity("a", "p", frozenset(), "token", jws.thumbprint(sender.public_key().public_bytes_raw()))
        opened = Opener(pair, SystemClock()).open(sent.request, caller, "sha256:x")
        assert sent.read(opened.answer(b"answer") + bytes.fromhex("7a0141")) == b"answer"

    def test_a_fork_makes_its_own(self) -> None:
        """The thread is not there in it."""
        public = suites.generate(suites.X25519).public_key
        assert prepared_for(public).seal(b"x").wire
        child = os.fork()
        if not child:
            os._exit(0 if prepared_for(public).seal(b"x").wire else 1)
        until = time.monotonic() + 10
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended[1] == 0 and ended != (0, 0)


def prepared_for(public_key: bytes) -> native_envelope.NativePrepared:
    """An envelope for an X25519 key, made ahead."""
    bound = Bound(suites.X25519, "p", "projects/p/deployments/d", "/m", os.urandom(16), "token", 1)
    target = Target("key", public_key, "sha256:x")
    return native_envelope.NativePrepared(1, bound, [target], Ed25519PrivateKey.generate(), ahead=True)
