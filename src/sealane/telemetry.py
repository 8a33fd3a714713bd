"""Traces: one W3C context through every hop; sampling is decided once, by whoever starts the trace.

Span and attribute names are declared here and nowhere else. Attributes are an allow-list: never a
payload, a token or a name chosen by a caller other than the resource acted on.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

RPC_METHOD = "rpc.method"
RPC_SYSTEM = "rpc.system.name"
RPC_STATUS = "rpc.response.status_code"
ERROR_TYPE = "error.type"
NODE = "sealane.node"
DEPLOYMENT = "sealane.deployment"
VARIANT = "sealane.variant"
BATCH = "sealane.batch_size"
QUEUE_US = "sealane.queue_us"

SPAN_LANE = "lane.call"
SPAN_OPEN = "seal.open"
SPAN_SEAL = "seal.seal"
SPAN_MODEL = "model.run"

_traceparent: ContextVar[str] = ContextVar("traceparent", default="")


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """Where spans go.

    Args:
        service: name of the service in every span.
        trace_file: JSON lines are appended here; empty for none.
        otlp_endpoint: OTLP/gRPC endpoint, ``http://host:port``; empty for none.
        sample_ratio: share of calls without a trace context that start a recorded trace, 0 to 1.
    """

    service: str
    trace_file: str = ""
    otlp_endpoint: str = ""
    sample_ratio: float = 0.01


class Telemetry:
    """Starts spans. Costs a few microseconds where a call is not sampled."""

    def __init__(self, tracer: trace.Tracer, sample_ratio: float) -> None:
        self._tracer = tracer
        self._ratio = sample_ratio

    def start(self, name: str, kind: SpanKind, traceparent: str) -> Span | None:
        """A span below `traceparent`, or None where the trace is not sampled."""
        parent = parse(traceparent)
        if parent is None:
            if random.random() >= self._ratio:
                return None
            return self._tracer.start_span(name, context=trace.set_span_in_context(trace.INVALID_SPAN), kind=kind)
        if not parent.trace_flags.sampled:
            return None
        return self._tracer.start_span(name, context=trace.set_span_in_context(NonRecordingSpan(parent)), kind=kind)

    @contextmanager
    def span(self, name: str, **attributes: str | int | float) -> Iterator[Span | None]:
        """A span for a step inside a call; nothing where the call is not sampled."""
        current = _traceparent.get()
        parent = parse(current)
        if parent is None or not parent.trace_flags.sampled:
            yield None
            return
        span = self.start(name, SpanKind.INTERNAL, current)
        assert span is not None
        for key, value in attributes.items():
            span.set_attribute(key, value)
        token = _traceparent.set(header_of(span))
        try:
            yield span
        finally:
            _traceparent.reset(token)
            span.end()


def sampled() -> bool:
    """Whether the call that runs here is recorded: the flag at the end of its ``traceparent``."""
    flags = _traceparent.get()[-1:]
    return flags != "" and flags in "13579bdf"


def current() -> str:
    """The ``traceparent`` to send with outgoing calls; empty outside a call."""
    return _traceparent.get()


def enter(traceparent: str) -> object:
    """Make `traceparent` current; returns what :func:`leave` wants."""
    return _traceparent.set(traceparent)


def leave(token: object) -> None:
    """Undo :func:`enter`; tolerates another context, as when a stream is closed by the collector."""
    try:
        _traceparent.reset(token)  # type: ignore[arg-type]  # opaque to callers
    except ValueError:
        _traceparent.set("")


def parse(traceparent: str) -> SpanContext | None:
    """Context of a W3C ``traceparent``; None where it is absent or malformed."""
    parts = traceparent.split("-")
    if len(parts) < 4 or len(parts[0]) != 2 or len(parts[1]) != 32 or len(parts[2]) != 16 or len(parts[3]) != 2:
        return None
    try:
        context = SpanContext(int(parts[1], 16), int(parts[2], 16), True, TraceFlags(int(parts[3], 16) & 1))
    except ValueError:
        return None
    return context if context.is_valid else None


def header_of(span: Span) -> str:
    """The ``traceparent`` of a span."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def new_traceparent(sampled: bool) -> str:
    """A fresh root context, for a client that wants its call traced."""
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-{int(sampled):02x}"


def configure(config: TelemetryConfig) -> Telemetry:
    """Telemetry of one process. Needs the ``[server]`` or ``[worker]`` extra."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": config.service}), shutdown_on_exit=True)
    if config.trace_file:
        path = Path(config.trace_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        provider.add_span_processor(BatchSpanProcessor(_file_exporter(path, config.service), schedule_delay_millis=200))
    if config.otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint)))
    return Telemetry(provider.get_tracer("sealane"), config.sample_ratio)


def disabled() -> Telemetry:
    """Telemetry that records nothing."""
    return Telemetry(trace.NoOpTracer(), 0.0)


def _file_exporter(path: Path, service: str):  # type: ignore[no-untyped-def]  # the SDK is an extra
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    lock = threading.Lock()

    class FileExporter(SpanExporter):
        """Appends a JSON object per span."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            lines = "".join(json.dumps(_as_json(span, service)) + "\n" for span in spans)
            with lock, path.open("a", encoding="utf-8") as file:
                file.write(lines)
            return SpanExportResult.SUCCESS

    return FileExporter()


def _as_json(span: ReadableSpan, service: str) -> dict[str, object]:
    context = span.get_span_context()
    return {
        "service": service,
        "name": span.name,
        "trace_id": f"{context.trace_id:032x}" if context else "",
        "span_id": f"{context.span_id:016x}" if context else "",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else "",
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "attributes": dict(span.attributes or {}),
    }
