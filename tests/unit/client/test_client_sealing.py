"""Sealed calls of the SDK: sessions, streams, several recipients, and who may be sealed to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sealane.client import Client
from sealane.client.prediction import INFER_PATH
from sealane.client.proxy import Proxy, ProxyOptions
from sealane.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane.security import kept_sessions
from sealane.type.v1.manifest_pb2 import SealingPolicy

X = np.arange(6, dtype=np.float32).reshape(3, 2)
INFER, OPEN = "SealedInfer", "OpenSealedSession"


def names(worker) -> list[str]:  # type: ignore[no-untyped-def]  # a fake of this folder
    return [call.method.name for call in worker.calls]


def predict(client: Client, **options: object) -> None:
    options = {"sealed": True, **options}
    np.testing.assert_array_equal(client.inference.predict("camera", {"x": X}, **options)["y"], X * 2)  # type: ignore[arg-type]


def test_a_session_is_opened_once_for_many_calls_of_many_threads(client: Client, site) -> None:
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(predict, client, sealed="session") for _ in range(40)]:
            done.result()
    assert names(site.workers[0]).count(OPEN) == 1
    requests = [call.message for call in site.workers[0].calls if call.method.name == INFER]
    assert sorted(request.session.counter for request in requests) == list(range(40))
    assert all(not request.recipients and not request.signature for request in requests)


def test_a_worker_that_restarts_ends_its_sessions_and_nobody_notices(client: Client, site) -> None:
    predict(client, sealed="session")
    site.workers[0].restart()
    predict(client, sealed="session")
    assert names(site.workers[0]) == [OPEN, INFER, INFER, OPEN, INFER]


def test_a_session_that_the_worker_forgot_is_opened_anew(client: Client, site, monkeypatch) -> None:
    monkeypatch.setattr(kept_sessions, "MAX_OF_SENDER", 1)
    predict(client, sealed="session")
    site.workers[0].opener._sessions = kept_sessions.KeptSessions(site.workers[0].opener._clock)
    predict(client, sealed="session")
    assert names(site.workers[0]) == [OPEN, INFER, INFER, OPEN, INFER]
    assert len(site.workers[0].contexts) == 1, "the key is still good"


def test_a_session_ends_before_its_worker_ends_it(client: Client, site, monkeypatch) -> None:
    monkeypatch.setattr("sealane.client.sealing._SESSION_REQUESTS", 3)
    for _ in range(7):
        predict(client, sealed="session")
    assert names(site.workers[0]).count(OPEN) == 3


def test_where_a_worker_keeps_no_more_sessions_requests_are_sealed_by_themselves(client: Client, site) -> None:
    site.workers[0].failures = [ResourceExhausted("too many", reason="SEALED_SESSIONS", retry_after=1.0)]
    predict(client, sealed="session")
    assert names(site.workers[0]) == [OPEN, INFER]
    assert site.workers[0].calls[1].message.recipients


def test_the_token_may_change_under_a_session(client: Client, site) -> None:
    predict(client, sealed="session")
    client._session.tokens._slots.clear()
    predict(client, sealed="session")
    first, second = (call.identity.token_id for call in site.workers[0].calls if call.method.name == INFER)
    assert first != second and names(site.workers[0]) == [OPEN, INFER, INFER]


def test_a_direct_call_goes_to_the_second_recipient_where_the_first_is_away(client: Client, site) -> None:
    first, second = site.workers
    first.offered = [first, second]
    first.failures = [Unavailable("draining")]
    predict(client, via="direct")
    assert names(first) == names(second) == [INFER]
    assert first.calls[0].message.request_id == second.calls[0].message.request_id, "one envelope, each has it once"
    assert len(second.calls[0].message.recipients) == 2


def test_a_slow_worker_is_hedged_by_the_second_recipient(client: Client, site) -> None:
    first, second = site.workers
    first.offered = [first, second]
    predict(client, via="direct")
    first.slow = 1.5
    begun = time.monotonic()
    predict(client, via="direct", hedge=0.05)
    assert time.monotonic() - begun < 1.4, "nobody waited for the slow one"
    assert names(second) == [INFER]
    first.slow = 0.0
    first.failures = [Unavailable("draining")]
    predict(client, via="direct", hedge=5.0)  # not there: asked at once, not after five seconds
    assert names(second) == [INFER, INFER]
    first.failures = [ResourceExhausted("too much", reason="QUOTA_EXCEEDED")]
    with pytest.raises(ResourceExhausted):
        predict(client, via="direct", hedge=5.0)
    assert len(second.calls) == 2, "what is final at one is not asked of the other"
    first.failures, second.failures = ([Unavailable("both away")] for _ in range(2))
    predict(client, via="direct", hedge=0.05)  # sealed anew and sent again
    assert len({call.message.request_id for call in second.calls}) == 3


def test_what_the_owner_demands_holds_beside_what_the_caller_requires(client: Client, site) -> None:
    first, second = site.workers
    first.offered = [first, second]
    first.policies, second.policies = ([SealingPolicy(regions=["us"])], [SealingPolicy(regions=["eu"])])
    predict(client, via="direct")
    assert names(first) == [] and names(second) == [INFER]
    assert len(second.calls[0].message.recipients) == 1
    with pytest.raises(FailedPrecondition) as refused:
        predict(client, require={"pool": "q"})
    assert "edge-1: pool q required, it says p" in refused.value.message
    second.policies.append(SealingPolicy(tiers=["cloud"]))
    with site.client() as other, pytest.raises(FailedPrecondition, match=r"edge-2: sealed to tier cloud"):
        predict(other, via="direct")


@pytest.mark.parametrize(
    ("require", "fits"),
    [
        ({"clearance": "internal"}, True),  # at least
        ({"clearance": "restricted"}, True),
        ({"clearance": ["internal", "public"]}, False),  # one of
        ({"suite": "X25519"}, True),
        ({"suite": "MLKEM768_X25519"}, False),  # no downgrade
        ({"node": "edge-1"}, True),
        ({"node": "edge-2"}, False),
    ],
)
def test_what_may_be_required(client: Client, site, require: dict[str, object], fits: bool) -> None:
    if fits:
        predict(client, require=require)
        return
    with pytest.raises(FailedPrecondition):
        predict(client, require=require)
    assert not site.workers[0].calls


def test_a_context_of_another_project_is_refused(client: Client, site) -> None:
    site.workers[0].deployment = "projects/q/deployments/camera"
    with pytest.raises(InvalidArgument, match="another project"):
        predict(client)
    assert not site.workers[0].calls


def test_the_version_that_is_wanted_is_asked_of_the_context(client: Client, site) -> None:
    predict(client, version="7")
    assert [request.version for request in site.workers[0].contexts] == ["7"]


def test_a_stream_gives_the_outputs_in_order(client: Client, site) -> None:
    inputs = [{"x": X + index} for index in range(20)]
    outputs = list(client.inference.sealed_stream("camera", inputs))
    assert len(outputs) == 20
    for index, output in enumerate(outputs):
        np.testing.assert_array_equal(output["y"], (X + index) * 2)
    assert list(client.inference.sealed_stream("camera", [])) == []


def test_a_stream_is_taken_as_it_is_sent_and_may_go_on(client: Client, site) -> None:
    turn = threading.Semaphore(1)

    def frames() -> Iterator[dict[str, np.ndarray]]:
        for index in range(3):
            assert turn.acquire(timeout=5), "the answer to the one before had come"
            yield {"x": X * index}

    for index, output in enumerate(client.inference.sealed_stream("camera", frames())):
        np.testing.assert_array_equal(output["y"], X * index * 2)
        turn.release()


def test_an_error_of_the_model_ends_the_stream_with_that_error(client: Client, site) -> None:
    site.workers[0].inside = [NotFound("no such output", reason="OUTPUT")]
    with pytest.raises(NotFound) as told:
        list(client.inference.sealed_stream("camera", [{"x": X}, {"x": X}]))
    assert told.value.reason == "OUTPUT"


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_stream_that_is_cut_is_noticed(client: Client, site, monkeypatch, lost: int) -> None:
    """A gateway ends the stream with status OK after so many answers."""
    whole = site.workers[0].SealedInferStream

    def cut(requests: object, call: object) -> Iterator[object]:
        for index, answer in enumerate(whole(requests, call)):
            if index > lost:
                return
            yield answer

    _serve(site, cut)
    with pytest.raises(Unavailable) as told:
        list(client.inference.sealed_stream("camera", [{"x": X}, {"x": X}]))
    assert told.value.reason == "STREAM_CUT"


def test_answers_of_a_stream_that_were_swapped_or_repeated_do_not_open(client: Client, site) -> None:
    whole = site.workers[0].SealedInferStream

    def swapped(requests: object, call: object) -> Iterator[object]:
        answers = whole(requests, call)
        yield next(answers)
        first = next(answers)
        yield next(answers)
        yield first

    def repeated(requests: object, call: object) -> Iterator[object]:
        answers = whole(requests, call)
        yield next(answers)
        first = next(answers)
        yield first
        yield first

    for dishonest in (swapped, repeated):
        _serve(site, dishonest)
        # It opens nothing; or it is there before the message that it would be the answer to.
        told = "cannot open the sealed answer|an answer that nobody asked for"
        with site.client() as fresh, pytest.raises(InvalidArgument, match=told):
            list(fresh.inference.sealed_stream("camera", [{"x": X}, {"x": X}, {"x": X}]))


def test_answers_that_were_swapped_between_requests_do_not_open(client: Client, site) -> None:
    answers = []
    whole = site.workers[0].SealedInfer

    def swapped(request: object, call: object) -> object:
        answers.append(whole(request, call))
        return answers[0]

    _serve(site, swapped, INFER)
    predict(client)
    with pytest.raises(InvalidArgument, match=r"sealed answer"):
        predict(client)
    predict_in_session = {"sealed": "session"}
    answers.clear()
    predict(client, **predict_in_session)
    with pytest.raises(InvalidArgument, match="cannot open the sealed answer"):
        predict(client, **predict_in_session)


def test_credentials_that_give_bearer_tokens_alone_cannot_seal(site) -> None:
    from sealane.client import StaticToken

    token = site.auth.token("sealane-inference")
    with site.client(StaticToken({"sealane-inference": token})) as client, pytest.raises(Unauthenticated) as told:
        predict(client)
    assert told.value.reason == "SENDER_KEY"


def _serve(site, handler: object, name: str = "SealedInferStream") -> None:  # type: ignore[no-untyped-def]
    """Have the gateway-like front answer by `handler` from now on."""
    listener = site.listeners["edge-1"]
    listener.close()
    setattr(site.workers[0], name, handler)
    listener.open()


def _sequence_body(sequence: int) -> bytes:
    request = openinference.encode_request(InferenceCall(Target("camera"), {"x": X}))
    request.parameters["sequence_id"].int64_param = sequence
    return request.SerializeToString()


def test_the_proxy_keeps_a_sequence_to_one_worker_and_runs_none_of_it_twice(client: Client, site) -> None:
    first, second = site.workers
    first.offered = [first, second]
    proxy = Proxy(client.inference, ProxyOptions(session=False, direct=True))
    kept: dict[int, str] = {}
    for sequence in range(1, 13):
        for _ in range(3):
            before = {worker.node: len(worker.calls) for worker in site.workers}
            proxy.answer(INFER_PATH, _sequence_body(sequence), time.monotonic() + 5)
            (node,) = [worker.node for worker in site.workers if len(worker.calls) > before[worker.node]]
            assert kept.setdefault(sequence, node) == node
    assert set(kept.values()) == {"edge-1", "edge-2"}, "sequences spread over the workers"
    requests = [call.message for worker in site.workers for call in worker.calls if call.method.name == INFER]
    assert all(len(request.recipients) == 1 for request in requests), "sealed to its keeper alone"
    calls = sum(len(worker.calls) for worker in site.workers)
    for worker in site.workers:
        worker.failures = [Unavailable("it may have run")]
    with pytest.raises(Unavailable):
        proxy.answer(INFER_PATH, _sequence_body(1), time.monotonic() + 5)
    assert sum(len(worker.calls) for worker in site.workers) == calls + 1
    proxy.stop()
