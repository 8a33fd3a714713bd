"""Spans leave a process with what is allowed and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode

from sealane import telemetry
from sealane.telemetry_export import Allowed, FileExporter

CANARY = "canary-5d0c"


def record(exporter: Allowed) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("outer") as span:
        span.set_attribute(telemetry.NODE, "edge-1")
        span.set_attribute("db.statement", CANARY)
        span.set_attribute("tensor", CANARY)
        span.add_event(CANARY, {"what": CANARY})
        span.set_status(Status(StatusCode.ERROR, CANARY))
        try:
            with tracer.start_as_current_span("inner"):
                raise ValueError(CANARY)  # OpenTelemetry records it by itself
        except ValueError:
            pass
    with tracer.start_as_current_span("plain") as span:
        span.set_attribute(telemetry.RPC_METHOD, "a/B")


def test_what_is_not_on_the_list_is_dropped() -> None:
    inner = InMemorySpanExporter()
    record(Allowed(inner))
    spans = {span.name: span for span in inner.get_finished_spans()}
    assert set(spans) == {"outer", "inner", "plain"}
    assert dict(spans["outer"].attributes or {}) == {telemetry.NODE: "edge-1"}
    assert dict(spans["plain"].attributes or {}) == {telemetry.RPC_METHOD: "a/B"}
    assert spans["outer"].status.status_code is StatusCode.ERROR
    assert spans["inner"].parent is not None and spans["outer"].context is not None
    assert spans["inner"].parent.span_id == spans["outer"].context.span_id
    assert not any(span.events or span.status.description for span in spans.values())


def test_nothing_of_it_comes_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "traces" / "one.jsonl"
    record(Allowed(FileExporter(path, "worker")))
    text = path.read_text()
    assert CANARY not in text
    assert [json.loads(line)["name"] for line in text.splitlines()] == ["inner", "outer", "plain"]
