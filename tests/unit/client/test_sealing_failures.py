"""Sealed calls when things go wrong: the failure is told, nothing is sent twice that must not be, nobody is held up."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from sealane.client import Client
from sealane.client.keyed_locks import KeyedLocks
from sealane.client.prediction import INFER_PATH
from sealane.client.sealing import SealedCall
from sealane.client.sealing_context import Asked, Context
from sealane.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target

X = np.arange(6, dtype=np.float32).reshape(3, 2)
INFER, OPEN = "SealedInfer", "OpenSealedSession"


def names(worker) -> list[str]:  # type: ignore[no-untyped-def]  # a fake of this folder
    return [call.method.name for call in worker.calls]


def predict(client: Client, **options: object) -> None:
    options = {"sealed": True, **options}
    np.testing.assert_array_equal(client.inference.predict("camera", {"x": X}, **options)["y"], X * 2)  # type: ignore[arg-type]


def run(client: Client, *, session: bool = True, sequence: str = "") -> bytes:
    body = openinference.encode_request(InferenceCall(Target("camera"), {"x": X})).SerializeToString()
    inference, end = client.inference, time.monotonic() + 5

    def attempt(target) -> bytes:  # type: ignore[no-untyped-def]
        call = SealedCall(Asked("camera", target), INFER_PATH, body, session=session, sequence=sequence)
        return inference.sealing.run(call, end)

    return inference.gateways.once(attempt)


def stale() -> FailedPrecondition:
    return FailedPrecondition("it ran, says nobody", reason="STALE_SEALED_SESSION")


def test_a_lie_about_a_session_does_not_run_a_step_of_a_sequence_again(client: Client, site) -> None:
    worker = site.workers[0]
    run(client)
    worker.failures, before = [stale()], names(worker).count(INFER)
    run(client)
    assert names(worker).count(INFER) == before + 2, "what may run twice is sealed anew"
    worker.failures, before = [stale()], names(worker).count(INFER)
    with pytest.raises(FailedPrecondition):
        run(client, sequence="s")
    assert names(worker).count(INFER) == before + 1
    run(client, sequence="s")


def test_a_worker_that_joins_is_found_by_who_was_refused_before(client: Client, site) -> None:
    first, second = site.workers
    first.offered = [first]
    with pytest.raises(FailedPrecondition) as told:
        predict(client, require={"node": "edge-2"})
    assert told.value.reason == "NO_CANDIDATE"
    first.offered = [first, second]
    predict(client, via="direct", require={"node": "edge-2"})
    assert names(second) == [INFER]


def test_a_closed_client_leaves_no_session_behind(site) -> None:
    client = site.client()
    predict(client, sealed="session")
    sessions = site.workers[0].opener._sessions
    assert len(sessions) == 1
    client.close()
    assert len(sessions) == 0


def test_a_closed_client_does_not_wait_for_a_worker_that_is_away(site) -> None:
    client = site.client()
    predict(client, sealed="session")
    site.listeners["edge-1"].close()
    begun = time.monotonic()
    client.close()
    assert time.monotonic() - begun < 3


def test_a_process_that_was_forked_off_opens_a_session_of_its_own(client: Client, site, monkeypatch) -> None:
    predict(client, sealed="session")
    parent = os.getpid()
    monkeypatch.setattr("os.getpid", lambda: parent + 1)
    predict(client, sealed="session")
    assert names(site.workers[0]) == [OPEN, INFER, OPEN, INFER]


def test_an_error_of_the_inputs_is_the_callers_own(client: Client, site, caplog: pytest.LogCaptureFixture) -> None:
    def frames() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": X}
        yield {"x": X}
        raise LookupError("patient 4711 is missing")

    outputs = client.inference.sealed_stream("camera", frames())
    found = []
    with pytest.raises(LookupError, match="4711"):
        for output in outputs:
            found.append(output)  # what came before the error counts
    assert len(found) == 2
    assert "4711" not in caplog.text
    assert len(site.workers[0].opener._sessions) == 0


def test_an_answer_that_nobody_asked_for_is_refused(client: Client, site, monkeypatch) -> None:
    whole, asked = site.workers[0].SealedInferStream, threading.Event()
    monkeypatch.setattr("sealane.client.sealed_stream._Sender._message", lambda *_, **__: asked.wait(5) and b"")

    def eager(requests: object, call: object) -> Iterator[object]:
        first = next(whole(requests, call))
        yield first
        yield first

    listener = site.listeners["edge-1"]
    listener.close()
    site.workers[0].SealedInferStream = eager
    listener.open()
    with site.client() as fresh, pytest.raises(InvalidArgument) as told:
        list(fresh.inference.sealed_stream("camera", [{"x": X}]))
    asked.set()
    assert told.value.reason == "STREAM_ORDER"


def test_a_stream_that_its_user_leaves_early_is_over_at_the_worker(client: Client, site) -> None:
    sessions = site.workers[0].opener._sessions
    for _ in range(5):
        stream = client.inference.sealed_stream("camera", [{"x": X}] * 10)
        next(stream)
        stream.close()
    end = time.monotonic() + 10
    while len(sessions):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_stream_goes_to_the_next_gateway_where_one_is_away(site, monkeypatch) -> None:
    from sealane.rpc.channel import Target as Place

    with site.client() as client:
        there = client._session.targets("inference")
        away = Place("127.0.0.1:1", there[0].trust_bundle, there[0].tls_name)
        gateways = client.inference.gateways
        gateways._all, gateways._turn = (away, *there), 0
        with pytest.raises(Unavailable):
            list(client.inference.sealed_stream("camera", [{"x": X}], signature="", timeout=5))
        assert gateways._turn == 1
        assert len(list(client.inference.sealed_stream("camera", [{"x": X}]))) == 1


def test_nobody_waits_longer_than_he_said_for_what_another_prepares() -> None:
    locks, held, release = KeyedLocks(), threading.Event(), threading.Event()

    def hold() -> None:
        with locks.hold("a", time.monotonic() + 10):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(5)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded), locks.hold("a", begun + 0.2):
        pass
    assert time.monotonic() - begun < 2
    with locks.hold("b", begun + 5):
        pass
    release.set()
    thread.join()
    with locks.hold("a", time.monotonic() + 5):
        pass
    assert not locks._locks


def test_sessions_may_be_forgotten_while_others_are_opened(client: Client, site) -> None:
    sealing, stop, interval = client.inference.sealing, threading.Event(), sys.getswitchinterval()

    def fill() -> None:
        for index in range(10_000_000):
            if stop.is_set():
                return
            sealing._sessions["g", "x", "", "", str(index % 500)] = None  # type: ignore[assignment]
            sealing._sessions.pop(("g", "x", "", "", str((index - 250) % 500)), None)

    thread = threading.Thread(target=fill)
    call = SealedCall(Asked("m", client._session.targets("inference")[0]), INFER_PATH, b"")
    context = Context("projects/p/deployments/m", (), 0.0)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(500):
            sealing._forget(call, context, Unavailable("away"))
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
        sealing._sessions.clear()


def test_envelopes_are_made_ahead_for_a_caller_that_is_alone(client: Client, site) -> None:
    ahead = client.inference.sealing._ahead

    def until_made() -> None:
        end = time.monotonic() + 10
        while not ahead._kept:
            assert time.monotonic() < end
            time.sleep(0.001)

    predict(client)
    until_made()
    (made,) = ahead._kept.values()
    predict(client)
    with pytest.raises(ValueError, match="one plaintext"):  # it was used
        made[1].seal(b"x")
    until_made()
    client.inference.sealing._under_way = 1  # as if another call were under way
    ahead._kept.clear()
    predict(client)
    time.sleep(0.05)
    assert not ahead._kept
