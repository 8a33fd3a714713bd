"""What the gateway counted, in Prometheus' text format: under our names, Triton's and TensorFlow Serving's.

What happens inside a worker (queue, run) is not known here and is not guessed: ModelStatistics tells it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sealane.rpc.call_metrics import CallMetrics, Key, Model, Series
from sealane.rpc.metrics_page import Page, histogram

_API = {
    "/tensorflow.serving.PredictionService/Predict": "predict",
    "/tensorflow.serving.PredictionService/Classify": "classify",
    "/tensorflow.serving.PredictionService/Regress": "regress",
    "/tensorflow.serving.PredictionService/MultiInference": "multi_inference",
}
_INFERENCE = frozenset({*_API, "/inference.GRPCInferenceService/ModelInfer"})


def page(metrics: CallMetrics, present: Iterable[Model]) -> bytes:
    """Everything."""
    series = metrics.series(present)
    written = Page()
    written.family(
        "sealane_rpc_server_call_duration_seconds",
        "histogram",
        "Time from a call's arrival to its answer, by method, code and deployment",
        (sample for key, item in series.items() for sample in histogram(_labels(key), item, 1.0)),
    )
    written.family("sealane_calls_in_flight", "gauge", "Calls and streams inside now", [("", {}, metrics.in_flight)])
    written.family(
        "sealane_refusals_total",
        "counter",
        "Calls refused for a quota or for load, by reason",
        [("", {"reason": reason}, count) for reason, count in sorted(metrics.refusals.items())],
    )
    _tensorflow(written, series)
    _triton(written, series)
    return written.text()


def _tensorflow(written: Page, series: Mapping[Key, Series]) -> None:
    called = [(key, key.model, item) for key, item in series.items() if key.method in _API and key.model is not None]
    counts: dict[tuple[str, str, str], float] = {}
    for key, model, item in called:
        of = (model[0], model[1], key.code)
        counts[of] = counts.get(of, 0) + item.count
    written.family(
        ":tensorflow:serving:request_count",
        "counter",
        "Requests to a model, by status",
        [
            ("", {"model_name": model, "status": code, "project": project}, count)
            for (project, model, code), count in counts.items()
        ],
    )
    latencies: dict[tuple[str, str, str, bool], Series] = {}
    for key, model, item in called:
        _add(latencies.setdefault((model[0], model[1], _API[key.method], key.http), Series()), item)
    written.family(
        ":tensorflow:serving:request_latency",
        "histogram",
        "Microseconds from a request's arrival to its answer",
        (
            sample
            for (project, model, api, http), item in latencies.items()
            for sample in histogram(
                {"model_name": model, "API": api, "entrypoint": "REST" if http else "GRPC", "project": project},
                item,
                1e6,
            )
        ),
    )


def _triton(written: Page, series: Mapping[Key, Series]) -> None:
    good: dict[Model, Series] = {}
    bad: dict[Model, Series] = {}
    for key, item in series.items():
        if key.method in _INFERENCE and key.model is not None:
            for into in (good if key.code == "OK" else bad, bad if key.code == "OK" else good):
                into.setdefault(key.model, Series())
            _add((good if key.code == "OK" else bad)[key.model], item)
    written.family(
        "nv_inference_request_success",
        "counter",
        "Inference requests that were answered",
        [("", _triton_labels(model), item.count) for model, item in good.items()],
    )
    written.family(
        "nv_inference_request_failure",
        "counter",
        "Inference requests that failed",
        [("", _triton_labels(model), item.count) for model, item in bad.items()],
    )
    written.family(
        "nv_inference_request_duration_us",
        "counter",
        "Microseconds of all answered inference requests",
        [("", _triton_labels(model), int(item.seconds * 1e6)) for model, item in good.items()],
    )


def _add(into: Series, item: Series) -> None:
    into.count += item.count
    into.seconds += item.seconds
    into.buckets = [left + right for left, right in zip(into.buckets, item.buckets, strict=True)]


def _labels(key: Key) -> dict[str, str]:
    project, deployment, _ = key.model or ("", "", "")
    return {
        "rpc_method": key.method.lstrip("/"),
        "rpc_response_status_code": key.code,
        "network_protocol_name": "http" if key.http else "grpc",
        "project": project,
        "deployment": deployment,
    }


def _triton_labels(model: Model) -> dict[str, str]:
    project, deployment, version = model
    return {"model": deployment, "version": version, "project": project}
