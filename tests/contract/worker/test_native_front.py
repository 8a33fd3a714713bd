"""The native front answers as Python does, and repeats nothing that may have changed."""

from __future__ import annotations

import gc
import math
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import hostile_box
import numpy as np
import pytest
from certificates import Pki

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.call import Call, Quota
from sealane.rpc.middleware import Chain
from sealane.rpc.places import Places
from sealane.rpc.status import from_rpc_error
from sealane.tensors import Array
from sealane_worker.box import BoxLimits
from sealane_worker.spec import ModelSpec, Ran, Serving
from sealane_worker.statistics import Begun, StatisticsRecorder

pytest.importorskip("sealane_native", reason="the native front is not built: make .venv/.native needs cargo")

from native_site import INFER, LIGHT, PREDICT, Caller, NativeSite, digits_call, learn, parsed, serving, told, wait

FLOAT = LIGHT / "litert-float.tflite"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeSite]:
    with serving(tmp_path_factory.mktemp("native"), BoxLimits(load=20)) as site:
        site.load("digits", ModelSpec("litert", FLOAT))
        yield site


@pytest.fixture
def site(shared: NativeSite) -> NativeSite:
    shared.server.forget()
    return shared


@pytest.fixture
def caller(site: NativeSite) -> Caller:
    return Caller(site.channel())


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[NativeSite, Caller]]:
    """A model that does what it is told, learned by the front."""
    hostile_box.find_hostile(monkeypatch)
    limits = BoxLimits(load=20, hang=20, backoff_first=0.02)
    with serving(tmp_path, limits) as site:
        site.load("hostile", hostile_box.spec_of(tmp_path))
        caller = Caller(site.channel())
        learn(site, "hostile", lambda: caller.predict(told("echo x")))
        yield site, caller


def failure_of(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return failed.value


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("protocol", ["infer", "predict"])
def test_answers_are_those_of_python(
    site: NativeSite, caller: Caller, digits: tuple[Array, Array], protocol: str, rows: int
) -> None:
    """300 rows are 77 KB: they go through the rings, and their answer too."""
    run = getattr(caller, protocol)
    want = run(digits_call(digits[0][:rows]))["probabilities"]
    assert (want.argmax(1) == digits[1][:rows]).mean() > 0.9
    before = site.native("digits")
    for _ in range(3):
        given = run(digits_call(digits[0][:rows]))
        assert given.keys() == {"probabilities"}
        assert np.array_equal(given["probabilities"], want)
    other = run(digits_call(digits[0][-rows:]))["probabilities"]
    assert site.native("digits") == before + 3
    site.server.forget()
    assert np.array_equal(other, run(digits_call(digits[0][-rows:]))["probabilities"])
    assert not np.array_equal(other, want)


def test_the_whole_answer_is_the_same(site: NativeSite, caller: Caller, digits: tuple[Array, Array]) -> None:
    request = openinference.encode_request(digits_call(digits[0][:2]))
    for name in ("first", "a second one"):
        request.id = name
        by_python, _ = caller.call(INFER, request.SerializeToString())
        learn(site, "digits", lambda: caller.call(INFER, request.SerializeToString()))
        by_front, call = caller.call(INFER, request.SerializeToString())
        assert parsed(oip.ModelInferResponse(), by_front) == parsed(oip.ModelInferResponse(), by_python)
        trailers = dict(call.trailing_metadata())
        assert len(str(trailers["x-sealane-load"]).split(",")) == 4
        site.server.forget()
    predict = tfserving.encode_request(digits_call(digits[0][:2], version="1")).SerializeToString()
    by_python, _ = caller.call(PREDICT, predict)
    learn(site, "digits", lambda: caller.call(PREDICT, predict))
    by_front, _ = caller.call(PREDICT, predict)
    assert parsed(tfs.PredictResponse(), by_front) == parsed(tfs.PredictResponse(), by_python)


def test_many_callers_get_their_own_answers(site: NativeSite, digits: tuple[Array, Array]) -> None:
    want = Caller(site.channel()).infer(digits_call(digits[0]))["probabilities"]
    before = site.native("digits")
    callers = [Caller(site.channel()) for _ in range(4)]

    def one(index: int) -> None:
        caller = callers[index % 4]
        given = (caller.infer if index % 3 else caller.predict)(digits_call(digits[0][index : index + 1]))
        np.testing.assert_allclose(given["probabilities"], want[index : index + 1], atol=1e-5)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, list(range(360)) * 5))
    assert site.native("digits") - before > 1700
    assert site.express.places.in_flight == 0


@pytest.mark.parametrize(
    "metadata", [{"dpop": "proof"}, {"x_sealane_affinity": "a"}, {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}]
)
def test_calls_that_something_may_depend_on_are_pythons(
    site: NativeSite, caller: Caller, digits: tuple[Array, Array], metadata: dict[str, str]
) -> None:
    learn(site, "digits", lambda: caller.infer(digits_call(digits[0][:1])))
    before = site.native("digits")
    for _ in range(3):
        caller.infer(digits_call(digits[0][:1]), **metadata)
    assert site.native("digits") == before


def test_traces_are_kept_and_drawn(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    with serving(tmp_path, BoxLimits(load=20), sample_ratio=0.25) as site:
        site.load("digits", ModelSpec("litert", FLOAT))
        caller = Caller(site.channel())
        for _ in range(400):
            caller.infer(digits_call(digits[0][:1]))
        drawn = len([span for span in site.spans.get_finished_spans() if span.name == INFER[1:]])
        assert 50 < drawn < 160, "a quarter of 400"
        assert site.native("digits") > 200
        site.spans.clear()
        for flags in ("00", "01"):
            for number in range(1, 11):
                caller.infer(digits_call(digits[0][:1]), traceparent=f"00-{number:032x}-{number:016x}-{flags}")
        spans = [span for span in site.spans.get_finished_spans() if span.name == INFER[1:]]
        assert sorted(span.context.trace_id for span in spans) == list(range(1, 11)), "those recorded, and no other"


def test_another_token_is_another_caller(site: NativeSite, caller: Caller, digits: tuple[Array, Array]) -> None:
    call = digits_call(digits[0][:1])
    learn(site, "digits", lambda: caller.infer(call))
    site.tokens.add("stranger", project="other")
    failure = failure_of(lambda: Caller(caller.channel, "stranger").infer(call))
    assert failure.code() is grpc.StatusCode.NOT_FOUND
    failure = failure_of(lambda: Caller(caller.channel, "unknown").infer(call))
    assert failure.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_revoked_token_is_refused_at_once(site: NativeSite, caller: Caller, digits: tuple[Array, Array]) -> None:
    site.tokens.add("short")
    short = Caller(caller.channel, "short")
    learn(site, "digits", lambda: short.infer(digits_call(digits[0][:1])))
    del site.tokens.known["short"]
    site.server.forget()  # what a revocation brings about
    failure = failure_of(lambda: short.infer(digits_call(digits[0][:1])))
    assert failure.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_token_ends_in_time(site: NativeSite, caller: Caller, digits: tuple[Array, Array]) -> None:
    site.tokens.add("ending", seconds=-28.5)  # 30 s of leeway: good for another second and a half
    ending = Caller(caller.channel, "ending")
    learn(site, "digits", lambda: ending.infer(digits_call(digits[0][:1])))
    time.sleep(1.6)
    site.tokens.seen.clear()
    ending.infer(digits_call(digits[0][:1]))
    assert site.tokens.seen == ["ending"], "it is asked for again"


@pytest.mark.parametrize("facts", [{"key_thumbprint": "key"}, {"certificate_thumbprint": "certificate"}])
def test_a_token_that_is_bound_is_looked_at_each_time(
    site: NativeSite, caller: Caller, digits: tuple[Array, Array], facts: dict[str, str]
) -> None:
    bound = Caller(caller.channel, site.tokens.add("bound", **facts))
    before = site.native("digits")
    for _ in range(4):
        bound.infer(digits_call(digits[0][:1]))
    assert site.native("digits") == before


def test_another_version_answers_from_the_moment_it_is_loaded(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    with serving(tmp_path, BoxLimits(load=20)) as site:
        site.load("digits", ModelSpec("litert", FLOAT), version=1)
        caller = Caller(site.channel())
        request = openinference.encode_request(digits_call(digits[0][:1])).SerializeToString()
        learn(site, "digits", lambda: caller.call(INFER, request))
        stop, versions, failures = threading.Event(), list[str](), list[str]()

        def ask() -> None:
            mine = Caller(site.channel())
            while not stop.is_set():
                try:
                    answer = parsed(oip.ModelInferResponse(), mine.call(INFER, request)[0])
                    versions.append(answer.model_version)  # type: ignore[attr-defined]
                except grpc.RpcError as failure:
                    failures.append(str(failure.code()))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        site.load("digits", ModelSpec("litert", LIGHT / "litert-int8.tflite"), version=2, epoch=2)
        loaded = len(versions)
        time.sleep(0.3)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert set(versions[: loaded // 2]) == {"1"}
        assert set(versions[loaded + 3 :]) == {"2"}, "but for those that were under way"
        site.engine.unload("projects/p/deployments/digits")
        assert failure_of(lambda: caller.call(INFER, request)).code() is grpc.StatusCode.NOT_FOUND


def test_a_model_that_gave_way_is_loaded_again(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    with serving(tmp_path, BoxLimits(load=20)) as site:
        site.load("digits", ModelSpec("litert", FLOAT))
        caller = Caller(site.channel())
        learn(site, "digits", lambda: caller.infer(digits_call(digits[0][:1])))
        entry = site.engine._loaded["projects/p/deployments/digits"]
        used = entry.pooled.last_used
        caller.infer(digits_call(digits[0][:1]))
        assert entry.pooled.last_used > used, "what goes past Python is a use as well"
        entry.pooled.give_way()
        before = entry.pooled.loads
        caller.infer(digits_call(digits[0][:1]))
        assert entry.pooled.loads == before + 1
        for _ in range(2):
            caller.infer(digits_call(digits[0][:1]))
        assert site.native("digits") >= 3


def test_what_a_model_says_that_went_wrong(hostile: tuple[NativeSite, Caller]) -> None:
    site, caller = hostile
    by_front = failure_of(lambda: caller.predict(told("complain"), x_request_id="request-7"))
    assert site.statistics("hostile").failed == 1
    site.server.forget()
    by_python = failure_of(lambda: caller.predict(told("complain"), x_request_id="request-7"))
    assert by_front.code() is by_python.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert by_front.details() == by_python.details()
    one, other = from_rpc_error(by_front), from_rpc_error(by_python)
    assert (one.kind, one.reason, one.field, one.metadata) == (other.kind, other.reason, other.field, other.metadata)


def test_failures_have_their_access_line(hostile: tuple[NativeSite, Caller], caplog: pytest.LogCaptureFixture) -> None:
    _, caller = hostile
    with caplog.at_level("INFO", "sealane.access"):
        failure_of(lambda: caller.predict(told("complain"), x_request_id="request-8"))
    (line,) = [record for record in caplog.records if getattr(record, "request_id", "") == "request-8"]
    assert (line.method, line.code, line.subject) == (PREDICT, "INVALID_ARGUMENT", "good's owner")  # type: ignore[attr-defined]


def test_a_deadline_that_passes_while_the_model_runs(hostile: tuple[NativeSite, Caller]) -> None:
    site, caller = hostile
    begun = time.monotonic()
    failure = failure_of(lambda: caller.predict(told("sleep 1"), timeout="0.2"))
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 0.9
    # The slot comes back when the model has answered, and nothing is left behind.
    assert caller.predict(told("echo y"))["said"].tolist() == [b"done y"]
    wait(lambda: site.engine._loaded["projects/p/deployments/hostile"].pooled.box.in_flight == 0)  # type: ignore[union-attr]
    assert site.express.places.in_flight == 0
    assert site.statistics("hostile").failed == 1


def test_a_caller_that_leaves_frees_its_place(hostile: tuple[NativeSite, Caller]) -> None:
    site, caller = hostile
    body = tfserving.encode_request(told("sleep 0.5")).SerializeToString()
    metadata = (("authorization", "Bearer good"),)
    futures = [caller.channel.unary_unary(PREDICT).future(body, timeout=10, metadata=metadata) for _ in range(8)]
    wait(lambda: site.express.places.in_flight == 8)
    for future in futures:
        future.cancel()
    wait(lambda: site.express.places.in_flight == 0)
    begun = time.monotonic()
    assert caller.predict(told("echo z"))["said"].tolist() == [b"done z"]
    assert time.monotonic() - begun < 1.5, "those that had not begun are struck off"
    assert site.statistics("hostile").failed == 8


def test_a_crash_fails_those_that_ran_and_no_others(hostile: tuple[NativeSite, Caller]) -> None:
    site, caller = hostile
    failure = failure_of(lambda: caller.predict(told("die")))
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert from_rpc_error(failure).reason == "MODEL_CRASHED"

    def again() -> bool:
        try:
            return caller.predict(told("echo back"))["said"].tolist() == [b"done back"]
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False

    wait(again, 10.0)
    before = site.native("hostile")
    wait(lambda: again() and site.native("hostile") > before)


def test_a_process_that_lies_is_ended(hostile: tuple[NativeSite, Caller]) -> None:
    site, caller = hostile
    box = site.engine._loaded["projects/p/deployments/hostile"].pooled.box
    assert box is not None
    pid = box.pid
    failure = failure_of(lambda: caller.predict(told("lie")))
    assert failure.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    wait(lambda: box.pid != pid, 10.0)


def test_a_model_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile_box.find_hostile(monkeypatch)
    with serving(tmp_path, BoxLimits(load=20, hang=0.3, backoff_first=0.02)) as site:
        site.load("hostile", hostile_box.spec_of(tmp_path))
        caller = Caller(site.channel())
        learn(site, "hostile", lambda: caller.predict(told("echo x")))
        box = site.engine._loaded["projects/p/deployments/hostile"].pooled.box
        assert box is not None
        pid = box.pid
        failure = failure_of(lambda: caller.predict(told("sleep 60"), timeout="0.1"))
        assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait(lambda: box.pid != pid, 10.0)


def test_both_ways_share_one_admission(hostile: tuple[NativeSite, Caller]) -> None:
    site, caller = hostile
    body = tfserving.encode_request(told("sleep 0.6")).SerializeToString()
    plain, other = (("authorization", "Bearer good"),), (("authorization", "Bearer good"), ("x-other", "1"))
    method = caller.channel.unary_unary(PREDICT)
    sent = [method.future(body, timeout=20, metadata=other if number % 2 else plain) for number in range(44)]
    wait(lambda: site.express.places.in_flight == 44)
    failure = failure_of(lambda: caller.predict(told("echo x")))
    assert failure.code() is grpc.StatusCode.UNAVAILABLE, "overload, in the words of TensorFlow Serving"
    assert from_rpc_error(failure).reason == "FAIR_SHARE"
    for future in sent:
        future.cancel()
    wait(lambda: site.express.places.in_flight == 0)


def test_requests_that_python_refuses_are_refused(
    site: NativeSite, caller: Caller, digits: tuple[Array, Array]
) -> None:
    good = openinference.encode_request(digits_call(digits[0][:1]))
    learn(site, "digits", lambda: caller.call(INFER, good.SerializeToString()))
    short = oip.ModelInferRequest.FromString(good.SerializeToString())
    short.raw_input_contents[0] = short.raw_input_contents[0][:-4]
    shape = oip.ModelInferRequest.FromString(good.SerializeToString())
    shape.inputs[0].shape[1] = 7
    twice = oip.ModelInferRequest.FromString(good.SerializeToString())
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    for wrong in (short, shape, twice):
        for _ in range(2):
            failure = failure_of(lambda wrong=wrong: caller.call(INFER, wrong.SerializeToString()))
            assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    for wrong in (b"\xff", good.SerializeToString()[:-1]):
        assert failure_of(lambda wrong=wrong: caller.call(INFER, wrong)).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_typed_values_are_pythons(site: NativeSite, caller: Caller, digits: tuple[Array, Array]) -> None:
    request = oip.ModelInferRequest(model_name="digits")
    values = digits[0][:1].ravel().tolist()
    request.inputs.add(name="image", datatype="FP32", shape=[1, 8, 8, 1], contents={"fp32_contents": values})
    before = site.native("digits")
    want = caller.infer(digits_call(digits[0][:1]))["probabilities"]
    for _ in range(4):
        answer = parsed(oip.ModelInferResponse(), caller.call(INFER, request.SerializeToString())[0])
        given = openinference.decode_response(answer)["probabilities"]  # type: ignore[arg-type]
        np.testing.assert_allclose(given, want, atol=1e-6)
    assert site.native("digits") == before


def test_equal_requests_share_a_run_in_python(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    with serving(tmp_path, BoxLimits(load=20)) as site:
        site.load("digits", ModelSpec("litert", FLOAT, serving=Serving(deterministic=True)))
        caller = Caller(site.channel())
        for _ in range(5):
            caller.infer(digits_call(digits[0][:1]))
        assert site.native("digits") == 0


@pytest.mark.parametrize("parameters", [{"sequence_id": 7}, {"timeout": 5_000_000}, {"classification": 2}])
def test_requests_that_say_more_are_pythons(
    site: NativeSite, caller: Caller, digits: tuple[Array, Array], parameters: dict[str, int]
) -> None:
    request = openinference.encode_request(digits_call(digits[0][:1]))
    for name, value in parameters.items():
        of = request.outputs.add(name="probabilities") if name == "classification" else request
        of.parameters[name].int64_param = value
    before = site.native("digits")
    for _ in range(4):
        caller.call(INFER, request.SerializeToString())
    assert site.native("digits") == before


def test_texts_and_flags_are_pythons(hostile: tuple[NativeSite, Caller]) -> None:
    """Lengths in a text may lie, and a flag of 2 is none."""
    site, caller = hostile
    before = site.native("hostile")
    words = InferenceCall(Target("hostile"), {"do": np.array([b"echo x"], np.object_)})
    for _ in range(4):
        assert caller.infer(words)["said"].tolist() == [b"done x"]
    flags = InferenceCall(Target("hostile", signature="flags"), {"flags": np.array([True, False])})
    body = tfserving.encode_request(flags)
    body.inputs["flags"].tensor_content = b"\x02\x00"
    for _ in range(4):
        answer = parsed(tfs.PredictResponse(), caller.call(PREDICT, body.SerializeToString())[0])
        assert tfserving.decode_response(answer)["bytes"].tolist() == [1, 0]  # type: ignore[arg-type]
    assert site.native("hostile") == before


def test_projects_with_quotas_are_counted_by_python(
    site: NativeSite, caller: Caller, digits: tuple[Array, Array]
) -> None:
    quota = (Quota(requests_per_second=1e6), Quota())
    charged = Caller(caller.channel, site.tokens.add("charged", quota=quota))
    before = site.native("digits")
    for _ in range(4):
        charged.infer(digits_call(digits[0][:1]))
    assert site.native("digits") == before


def test_what_was_under_way_when_all_was_forgotten_teaches_nothing(hostile: tuple[NativeSite, Caller]) -> None:
    site, caller = hostile
    site.server.forget()
    caller.predict(told("echo x"))
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(caller.predict, told("sleep 0.5"))
        wait(lambda: site.express.places.in_flight == 1)
        site.server.forget()
        slow.result()
    before = site.native("hostile")
    caller.predict(told("echo y"))
    caller.predict(told("echo y"))
    assert site.native("hostile") == before, "the caller is learned anew, then the request"


def test_models_that_left_leave_no_descriptors(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    """Their requests are never asked again: nothing else looks them up."""
    with serving(tmp_path, BoxLimits(load=20)) as site:
        site.load("digits", ModelSpec("litert", FLOAT))
        caller = Caller(site.channel())
        counts = []
        for rows in range(1, 7):
            for _ in range(3):
                caller.infer(digits_call(digits[0][:rows]))
            site.engine._loaded["projects/p/deployments/digits"].pooled.give_way()
            gc.collect()
            counts.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208
        assert counts[-1] <= counts[1] + 10


def test_callers_that_leave_at_once_leave_nothing_at_the_desk(hostile: tuple[NativeSite, Caller]) -> None:
    site, caller = hostile
    body = tfserving.encode_request(told("sleep 0.05")).SerializeToString()
    metadata = (("authorization", "Bearer good"), ("x-other", "1"))
    method = caller.channel.unary_unary(PREDICT)
    for _ in range(30):
        sent = [method.future(body, timeout=0.01, metadata=metadata) for _ in range(40)]
        for future in sent:
            future.exception()
    wait(lambda: site.express.places.in_flight == 0, 10.0)
    assert caller.predict(told("echo z"))["said"].tolist() == [b"done z"]


def test_the_front_believes_no_mark_but_its_own(
    site: NativeSite, caller: Caller, digits: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[str, str], int]] = []
    before = site.tokens.before

    def look(call: Call) -> None:
        seen.append((dict(call.metadata), call.ticket))
        before(call)

    monkeypatch.setattr(site.tokens, "before", look)
    monkeypatch.setattr(site.dispatcher, "chain", Chain(site.chain))
    forged = f"{site.server._secret}-77"  # even one who knew the secret is not heard
    for _ in range(2):  # carried, then read in the front
        caller.infer(digits_call(digits[0][:1]), x_sealane_express=forged, x_sealane_connection="1")
    assert len(seen) == 2
    for metadata, ticket in seen:
        assert "x-sealane-express" not in metadata
        assert "x-sealane-connection" not in metadata
        assert ticket != 77


@pytest.mark.parametrize("size", [5 << 20, 20 << 20])
def test_large_requests_go_through_python_as_they_come(tmp_path: Path, size: int) -> None:
    """Above 4 MiB nothing is held back in the front."""
    with serving(tmp_path, BoxLimits(load=20)) as site:
        site.load("digits", ModelSpec("litert", FLOAT))
        caller = Caller(site.channel())
        rows = np.zeros((size // 256, 8, 8, 1), np.float32)
        for _ in range(3):
            assert caller.infer(digits_call(rows))["probabilities"].shape == (len(rows), 10)
        assert site.native("digits") == 0


def test_large_answers_wait_for_their_reader(site: NativeSite, caller: Caller, digits: tuple[Array, Array]) -> None:
    rows = np.repeat(digits[0][:360], 30, axis=0)  # 2.7 MB in, 432 KB out
    want = caller.infer(digits_call(rows))["probabilities"]
    learn(site, "digits", lambda: caller.infer(digits_call(rows)))
    before = site.native("digits")
    with ThreadPoolExecutor(8) as threads:
        for given in threads.map(lambda _: caller.infer(digits_call(rows))["probabilities"], range(40)):
            assert np.array_equal(given, want)
    assert site.native("digits") > before + 20


def test_streams_and_other_methods_are_carried(site: NativeSite, caller: Caller, digits: tuple[Array, Array]) -> None:
    method = caller.channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
    method(b"", timeout=10, metadata=(("authorization", "Bearer good"),))
    stream = caller.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    body = openinference.encode_request(digits_call(digits[0][:1])).SerializeToString()
    answers = list(stream(iter([body] * 20), timeout=20, metadata=(("authorization", "Bearer good"),)))
    assert len(answers) == 20
    unknown = failure_of(lambda: caller.call("/inference.GRPCInferenceService/Nothing", b""))
    assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED


def test_only_tls_1_3_with_http_2(site: NativeSite) -> None:
    host, _, port = site.address.rpartition(":")

    def shake(most: ssl.TLSVersion, protocols: list[str]) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, most
        context.set_alpn_protocols(protocols)
        with socket.create_connection((host, int(port)), timeout=5) as raw, context.wrap_socket(raw) as secured:
            return secured.version()

    assert shake(ssl.TLSVersion.TLSv1_3, ["h2"]) == "TLSv1.3"
    with pytest.raises(OSError):
        shake(ssl.TLSVersion.TLSv1_2, ["h2"])
    with pytest.raises(OSError):
        shake(ssl.TLSVersion.TLSv1_3, ["http/1.1"])


def test_it_is_counted_as_what_goes_through_python(hostile: tuple[NativeSite, Caller]) -> None:
    site, caller = hostile
    for _ in range(5):
        caller.predict(told("echo x"))
    site.server.forget()
    caller.predict(told("echo x"))
    told_ = site.statistics("hostile")
    assert (told_.succeeded, told_.failed, told_.native, told_.rows) == (9, 0, 6, 9)
    assert told_.p50_us > 0
    assert told_.last_time > time.time() - 10
    assert math.isclose(sum(count for count, _ in told_.batches.values()), 9)
    assert sum(told_.series.buckets) == told_.series.count == 9
    load = site.engine.load_of("projects/p/deployments/hostile")
    assert load is not None
    assert load.calls == 0
    assert load.service > 0


def test_a_stop_lets_calls_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile_box.find_hostile(monkeypatch)
    with serving(tmp_path, BoxLimits(load=20)) as site:
        site.load("hostile", hostile_box.spec_of(tmp_path))
        caller = Caller(site.channel())
        learn(site, "hostile", lambda: caller.predict(told("echo x")))
        with ThreadPoolExecutor(2) as threads:
            through_front = threads.submit(caller.predict, told("sleep 0.5"))
            through_python = threads.submit(lambda: caller.predict(told("sleep 0.5"), x_other="1"))
            wait(lambda: site.express.places.in_flight == 2)
            assert site.server.stop(5.0).wait(5.0)
            for call in (through_front, through_python):
                assert call.result()["said"].tolist() == [b"done None"]
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(site.address.rpartition(":")[2])), timeout=1)


def test_a_killed_process_leaves_no_call_hanging(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    with serving(tmp_path, BoxLimits(load=20, backoff_first=0.02)) as site:
        site.load("digits", ModelSpec("litert", FLOAT))
        box = site.engine._loaded["projects/p/deployments/digits"].pooled.box
        assert box is not None
        stop, codes = threading.Event(), list[str]()

        def ask() -> None:
            caller = Caller(site.channel())
            while not stop.is_set():
                try:
                    caller.infer(digits_call(digits[0][:1]))
                    codes.append("OK")
                except grpc.RpcError as failure:
                    codes.append(f"{failure.code().name} {from_rpc_error(failure).reason}")
                    time.sleep(0.01)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            time.sleep(0.5)
            os.kill(box.pid, signal.SIGKILL)
        time.sleep(1.0)
        stop.set()
        for thread in threads:
            thread.join(10.0)
            assert not thread.is_alive()
        assert set(codes) <= {"OK", "UNAVAILABLE MODEL_CRASHED", "UNAVAILABLE MODEL_RESTARTING"}
        assert codes[-1] == "OK"
        assert site.express.places.in_flight == 0


@pytest.mark.parametrize("seed", range(20))
def test_places_are_given_as_in_python(seed: int) -> None:
    """The same calls come and go at both."""
    import sealane_native

    chance = random.Random(seed)
    both = (Places(12), sealane_native.Places(12))
    inside: list[str] = []
    for _ in range(400):
        if inside and chance.random() < 0.4:
            project = inside.pop(chance.randrange(len(inside)))
            for places in both:
                places.part(project)
                places.leave()
        else:
            project, force = chance.choice("abcd"), chance.random() < 0.05
            entered = {places.enter(force) for places in both}
            assert len(entered) == 1
            if entered == {True}:
                joined = {places.join(project) for places in both}
                assert len(joined) == 1
                if joined == {-1}:
                    inside.append(project)
                else:
                    for places in both:
                        places.leave()
        assert both[0].in_flight == both[1].in_flight == len(inside)
        if chance.random() < 0.1:
            assert both[0].take_counts() == both[1].take_counts()


def test_load_is_told_as_in_python() -> None:
    chance = random.Random(1)
    recorders = (StatisticsRecorder(), StatisticsRecorder(native=True))
    begun: list[tuple[Begun, Begun]] = []
    for _ in range(300):
        if begun and chance.random() < 0.5:
            pair, ran = begun.pop(0), Ran({}, chance.uniform(0.01, 0.02), 0.001, chance.choice((1, 4)))
            for recorder, one in zip(recorders, pair, strict=True):
                recorder.succeeded(one, ran, 1)
        else:
            begun.append((recorders[0].begun(), recorders[1].begun()))
        one, other = (recorder.load() for recorder in recorders)
        assert one.calls == other.calls
        assert one.service == pytest.approx(other.service)
        assert one.queue == pytest.approx(other.queue, rel=0.05, abs=1e-3)  # each has its own clock


def test_telling_statistics_stops_nobody() -> None:
    """With a lock held meanwhile this hangs within a second, all of its threads."""
    program = Path(__file__).parents[2] / "fakes" / "statistics_and_garbage.py"
    assert subprocess.run([sys.executable, str(program)], timeout=30, check=False).returncode == 0


def test_a_renewed_certificate_is_used(tmp_path: Path) -> None:
    with serving(tmp_path, BoxLimits(load=20)) as site:
        first = _certificate(site)
        Pki().identity(tmp_path / "identity", "node", "cloud-1")
        time.sleep(0.15)  # it is looked for ten times a second at most
        assert _certificate(site) != first


def _certificate(site: NativeSite) -> bytes:
    host, _, port = site.address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=5) as raw, context.wrap_socket(raw) as secured:
        return secured.getpeercert(binary_form=True) or b""
