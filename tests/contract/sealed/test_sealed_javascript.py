"""SEAL-6: JavaScript seals and Python opens, and back, for both suites; the vectors open in JavaScript."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sealed_checks as checks
import sealed_reader
from native_library import NEEDS_LIBRARY
from sealed_cases import ANSWER_CHANGES, kept, read
from sealed_hpke import LOW_ORDER, seal_as_agreed
from sealed_parties import NATIVE, OURS, Other, Party, World
from sealed_reader import INFER, Worker
from sealed_script import MISSING, Refused, Script
from sealed_vectors import Maker

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"`make conformance-clients` has not made {MISSING}")


@pytest.fixture(scope="module", params=[1, 2], ids=["hybrid", "x25519"])
def suite(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    script = Script()
    yield script
    script.close()


@pytest.fixture(
    params=[
        pytest.param((True, OURS), id="to ours"),
        pytest.param((False, OURS), id="from ours"),
        pytest.param((True, NATIVE), id="to native", marks=NEEDS_LIBRARY),
        pytest.param((False, NATIVE), id="from native", marks=NEEDS_LIBRARY),
    ]
)
def pair(request: pytest.FixtureRequest, script: Script) -> tuple[Party, Party]:
    """Client and worker: JavaScript is one, ours the other."""
    to_ours, ours = request.param
    return (Other(script), ours) if to_ours else (ours, Other(script))


@pytest.mark.parametrize("source", ["kept", "fresh"])
def test_it_opens_every_vector(script: Script, suite: int, source: str) -> None:
    vectors = kept(suite) if source == "kept" else read(Maker(suite).document())
    assert checks.opened_by(script, vectors) == (16, 20)


@pytest.mark.parametrize("size", checks.SIZES)
def test_requests_by_themselves(pair: tuple[Party, Party], suite: int, size: int) -> None:
    checks.a_request(*pair, suite, size)


def test_sessions(pair: tuple[Party, Party], suite: int) -> None:
    checks.a_session(*pair, suite)


def test_streams(pair: tuple[Party, Party], suite: int) -> None:
    checks.a_stream(*pair, suite)


def test_nothing_that_was_altered_opens(pair: tuple[Party, Party], suite: int) -> None:
    checks.altered_requests(*pair, suite)
    checks.altered_session_requests(*pair, suite)


def test_no_answer_that_was_altered_opens(pair: tuple[Party, Party], suite: int) -> None:
    checks.altered_answers(*pair, suite, ANSWER_CHANGES)


@pytest.mark.parametrize("point", LOW_ORDER, ids=bytes.hex)
def test_points_of_low_order(script: Script, suite: int, point: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sealed to, nor opened from who seals under the zeros that they lead to."""
    world = World.new(suite)
    worker, message = world.workers[0], world.draft(INFER)

    def known(kem: int, public: bytes, info: bytes, plaintext: bytes) -> bytes:
        return seal_as_agreed(kem, public, bytes(32), point, info, plaintext)

    monkeypatch.setattr(sealed_reader, "hpke_seal", known)
    sealed_reader.seal_request(message, world.token, world.sender, [worker], b"plaintext")
    with pytest.raises(Refused, match="DecapError"):
        script.open_request(message, world.token, world.jkt, worker)
    weak = Worker(suite, worker.public[:-32] + point, worker.variant)
    with pytest.raises(Refused, match="EncapError"):
        script.seal_request(world.draft(INFER), world.token, world.sender, [weak], b"plaintext")


def test_what_it_was_not_given_right_is_no_refusal(script: Script) -> None:
    """A mistake in the script is told apart from a message that it refuses, or the tests above would show nothing."""
    keys = sealed_reader.Keys("k", b"", b"", b"")
    with pytest.raises(Refused):
        script.open_answer({}, script.seal_answer(keys, b"x"))
    with pytest.raises(RuntimeError, match="TypeError"):
        script._call("openAnswer")
