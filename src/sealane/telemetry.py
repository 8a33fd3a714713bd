"""Traces: one W3C context through every hop; sampling is decided once, by whoever starts the trace.

Span and attribute names are declared here and nowhere else. Attributes are an allow-list, enforced where spans leave
the process: never a payload, a token or a name chosen by a caller other than the resource acted on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

RPC_METHOD = "rpc.method"
RPC_SYSTEM = "rpc.system.name"
RPC_STATUS = "rpc.response.status_code"
ERROR_TYPE = "error.type"
NODE = "sealane.node"
DEPLOYMENT = "sealane.deployment"
VARIANT = "sealane.variant"
BATCH = "sealane.batch_size"
QUEUE_US = "sealane.queue_us"

#: All that a span may say; the exporters drop everything else.
ATTRIBUTES = frozenset({RPC_METHOD, RPC_SYSTEM, RPC_STATUS, ERROR_TYPE, NODE, DEPLOYMENT, VARIANT, BATCH, QUEUE_US})

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

    @property
    def sample_ratio(self) -> float:
        """Share of calls without a trace context that start a recorded trace."""
        return self._ratio

    def start(self, name: str, kind: SpanKind, traceparent: str, *, drawn: bool = False) -> Span | None:
        """A span below `traceparent`, or None where the trace is not sampled.

        With `drawn` the lot has fallen on this call already, where there is no trace.
        """
        parent = parse(traceparent)
        if parent is None:
            if not drawn and random.random() >= self._ratio:
                return None
            return self._tracer.start_span(name, context=trace.set_span_in_context(trace.INVALID_SPAN), kind=kind)
        if not parent.trace_flags.sampled:
            return None
        return self._tracer.start_span(name, context=trace.set_span_in_context(NonRecordingSpan(parent)), kind=kind)

    def span(self, name: str, **attributes: str | int | float) -> AbstractContextManager[Span | None]:
        """A span for a step inside a call; nothing, at hardly any cost, where the call is not sampled."""
        return self._recorded(name, attributes) if sampled() else _NOTHING

    @contextmanager
    def _recorded(self, name: str, attributes: Mapping[str, str | int | float]) -> Iterator[Span | None]:
        span = self.start(name, SpanKind.INTERNAL, _traceparent.get())
        if span is None:  # what is current is no trace context
            yield None
            return
        for key, value in attributes.items():
            span.set_attribute(key, value)
        token = _traceparent.set(header_of(span))
        try:
            yield span
        finally:
            _traceparent.reset(token)
            span.end()


#: May be entered any number of times at once.
_NOTHING: AbstractContextManager[Span | None] = nullcontext()


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

    from sealane.telemetry_export import Allowed, FileExporter

    provider = TracerProvider(resource=Resource.create({"service.name": config.service}), shutdown_on_exit=True)
    if config.trace_file:
        file = FileExporter(Path(config.trace_file), config.service)
        provider.add_span_processor(BatchSpanProcessor(Allowed(file), schedule_delay_millis=200))
    if config.otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(Allowed(OTLPSpanExporter(endpoint=config.otlp_endpoint))))
    return Telemetry(provider.get_tracer("sealane"), config.sample_ratio)


def disabled() -> Telemetry:
    """Telemetry that records nothing."""
    return Telemetry(trace.NoOpTracer(), 0.0)
