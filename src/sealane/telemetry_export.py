"""How spans leave a process: stripped of everything that is not on the list. Needs OpenTelemetry's SDK."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status

from sealane.telemetry import ATTRIBUTES


class Allowed(SpanExporter):
    """Passes spans on with the attributes of :data:`sealane.telemetry.ATTRIBUTES` alone.

    Events and descriptions of a status go too: OpenTelemetry puts exceptions there, with texts and frames that may hold
    what a caller sent.
    """

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export what may leave."""
        return self._inner.export([stripped(span) for span in spans])

    def shutdown(self) -> None:
        """End the exporter inside."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter inside."""
        return self._inner.force_flush(timeout_millis)


def stripped(span: ReadableSpan) -> ReadableSpan:
    """A span that says what is allowed and nothing else; the same one where it says nothing else already."""
    attributes = span.attributes or {}
    if not span.events and not span.status.description and attributes.keys() <= ATTRIBUTES:
        return span
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes={name: value for name, value in attributes.items() if name in ATTRIBUTES},
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


class FileExporter(SpanExporter):
    """Appends a JSON object per span to a file."""

    def __init__(self, path: Path, service: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._service = service
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write them."""
        lines = "".join(json.dumps(_as_json(span, self._service)) + "\n" for span in spans)
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(lines)
        return SpanExportResult.SUCCESS


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
