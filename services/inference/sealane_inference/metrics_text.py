"""What the gateway counted, in Prometheus' text format: under our names, Triton's and TensorFlow Serving's.

What happens inside a worker (queue, run) is not known here and is not guessed: ModelStatistics tells it.
The format: https://prometheus.io/docs/instrumenting/exposition_formats
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from sealane.rpc.call_metrics import BOUNDS, CallMetrics, Key, Model, Series

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_API = {
    "/tensorflow.serving.PredictionService/Predict": "predict",
    "/tensorflow.serving.PredictionService/Classify": "classify",
    "/tensorflow.serving.PredictionService/Regress": "regress",
    "/tensorflow.serving.PredictionService/MultiInference": "multi_inference",
}
_INFERENCE = frozenset({*_API, "/inference.GRPCInferenceService/ModelInfer"})

Labels = Mapping[str, str]


class _Page:
    """Families of samples, each family once and together."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, samples: Iterable[tuple[str, Labels, float]]) -> None:
        """Add a family; a sample is the end of its name, its labels and its value."""
        self._lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
        for suffix, labels, value in samples:
            told = ",".join(f'{label}="{_escape(content)}"' for label, content in labels.items())
            number = str(int(value)) if value == int(value) else repr(value)
            self._lines.append(f"{name}{suffix}{{{told}}} {number}" if told else f"{name}{suffix} {number}")

    def text(self) -> bytes:
        """The page."""
        return ("\n".join(self._lines) + "\n").encode()


def page(metrics: CallMetrics, present: Iterable[Model]) -> bytes:
    """Everything."""
    series = metrics.series(present)
    written = _Page()
    written.family(
        "sealane_rpc_server_call_duration_seconds",
        "histogram",
        "Time from a call's arrival to its answer, by method, code and deployment",
        (sample for key, item in series.items() for sample in _histogram(_labels(key), item, 1.0)),
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


def _tensorflow(written: _Page, series: Mapping[Key, Series]) -> None:
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
            for sample in _histogram(
                {"model_name": model, "API": api, "entrypoint": "REST" if http else "GRPC", "project": project},
                item,
                1e6,
            )
        ),
    )


def _triton(written: _Page, series: Mapping[Key, Series]) -> None:
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


def _histogram(labels: Labels, series: Series, unit: float) -> Iterable[tuple[str, Labels, float]]:
    for bound, count in zip((*BOUNDS, None), accumulate(series.buckets), strict=True):
        yield "_bucket", {**labels, "le": "+Inf" if bound is None else f"{bound * unit:g}"}, count
    yield "_sum", labels, series.seconds * unit
    yield "_count", labels, series.count


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


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
