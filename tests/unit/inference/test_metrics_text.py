"""What scrapers read: a page that Prometheus' own parser takes, with numbers that are true."""

from __future__ import annotations

import time
from pathlib import Path
from unittest.mock import patch

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sealane.compat.openinference.v2 import openinference_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.errors import FailedPrecondition, NotFound, ResourceExhausted, SealaneError
from sealane.rpc import call_metrics
from sealane.rpc.call import Call, Peer
from sealane.rpc.call_metrics import CallMetrics
from sealane.rpc.metrics_page import token_of
from sealane.rpc.policy import methods_of, unserved
from sealane_inference.metrics_text import page

METHODS = {
    method.name: method
    for file, service, name in (
        (openinference_pb2, "GRPCInferenceService", "inference.GRPCInferenceService"),
        (tfserving_pb2, "PredictionService", "tensorflow.serving.PredictionService"),
    )
    for method in methods_of(file.DESCRIPTOR.services_by_name[service], name)
}
D = ("p", "d", "3")


def count(
    metrics: CallMetrics,
    method: str = "ModelInfer",
    model: tuple[str, str, str] | None = D,
    failure: SealaneError | None = None,
    *,
    http: bool = False,
    seconds: float = 0.0,
) -> None:
    call = Call(METHODS[method], {}, Peer(), time.monotonic() + 9, proves=("POST", "") if http else None)
    metrics.before(call)
    call.model = model
    with patch.object(call_metrics.time, "monotonic", return_value=call.started + seconds):
        metrics.after(call, failure)


Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(metrics: CallMetrics, *present: tuple[str, str, str]) -> Found:
    return {
        # The parser adds to the names of counters what they have by another convention.
        (sample.name.removesuffix("_total"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(metrics, present or (D,)).decode())
        for sample in family.samples
    }


def value(found: Found, name: str, **labels: str) -> float:
    (only,) = [number for (key, said), number in found.items() if key == name and said >= set(labels.items())]
    return only


def test_counts_under_all_three_names() -> None:
    metrics = CallMetrics()
    for seconds in (0.002, 0.02, 99.0):
        count(metrics, seconds=seconds)
    count(metrics, failure=NotFound("gone"))
    count(metrics, "Predict", http=True)
    count(metrics, "ModelReady")
    found = samples(metrics)
    assert value(found, "nv_inference_request_success", model="d", version="3", project="p") == 4
    assert value(found, "nv_inference_request_failure", model="d") == 1
    assert value(found, "nv_inference_request_duration_us", model="d") == pytest.approx(99_022_000, abs=10)
    assert value(found, ":tensorflow:serving:request_count", model_name="d", status="OK") == 1
    latency = {"model_name": "d", "API": "predict", "entrypoint": "REST"}
    assert value(found, ":tensorflow:serving:request_latency_count", **latency) == 1
    ours = {"rpc_method": "inference.GRPCInferenceService/ModelInfer", "rpc_response_status_code": "OK"}
    name = "sealane_rpc_server_call_duration_seconds"
    buckets = [value(found, f"{name}_bucket", le=le, **ours) for le in ("0.001", "0.0025", "0.025", "10", "+Inf")]
    assert buckets == [0, 1, 2, 2, 3]
    assert value(found, f"{name}_count", **ours) == 3
    assert value(found, "sealane_calls_in_flight") == 0


def test_refusals_by_their_reason_and_nothing_that_others_made_up() -> None:
    metrics = CallMetrics()
    for reason in ("QUOTA_EXCEEDED", "QUOTA_EXCEEDED", "OVERLOAD", "SOMETHING_A_WORKER_SAYS"):
        count(metrics, failure=ResourceExhausted("full", reason=reason))
    found = {dict(said)["reason"]: number for (name, said), number in samples(metrics).items() if "refusals" in name}
    assert found == {"QUOTA_EXCEEDED": 2, "OVERLOAD": 1}


def test_a_model_that_is_gone_is_forgotten_and_odd_names_are_escaped() -> None:
    metrics = CallMetrics()
    odd = ("p", 'a"b\\c\nd', "1")
    count(metrics)
    count(metrics, model=odd)
    assert value(samples(metrics, D, odd), "nv_inference_request_success", model=odd[1]) == 1
    assert not any(dict(said).get("model") == odd[1] for _, said in samples(metrics))
    assert not any(dict(said).get("model") == odd[1] for _, said in samples(metrics, D, odd))


def test_series_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_metrics, "CAPACITY", 5)
    metrics = CallMetrics()
    models = [("p", f"m{index}", "1") for index in range(20)]
    for model in models:
        count(metrics, model=model)
    series = metrics.series(models)
    assert len(series) == 6
    assert sum(item.count for item in series.values()) == 20
    for index in range(20):
        call = Call(unserved(f"/made.Up/{index}"), {}, Peer(), 0.0)
        metrics.before(call)
        metrics.after(call, NotFound("no"))
    assert len(metrics.series(models)) == 7


def test_who_may_scrape(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    for address in ("127.0.0.1:0", "[::1]:9", "localhost:1"):
        assert token_of(address, None, "S") == ""
    assert token_of("0.0.0.0:9", file, "S") == "0123456789abcdef"
    for address in ("0.0.0.0:9", "[::]:9", "gateway:9", "10.0.0.1:9"):
        with pytest.raises(FailedPrecondition):
            token_of(address, None, "S")
    file.write_text("short")
    with pytest.raises(FailedPrecondition):
        token_of("127.0.0.1:0", file, "S")
