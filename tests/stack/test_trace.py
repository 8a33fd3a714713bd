"""One trace through every hop, with nothing in it that is nobody's business (OTLP export included)."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from light_site import CAMERA_B, EDGE, LightSite
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.trace import SpanKind

from sealane import telemetry
from sealane.client import Client, connect
from sealane_local.traces import SpanLine, wait_for_trace

pytestmark = pytest.mark.stack
SEALED = "sealane.inference.v1.SealedInferenceService/SealedInfer"
INFER = "inference.GRPCInferenceService/ModelInfer"
#: Everything that an attribute may be; see sealane.telemetry.
ALLOWED = {
    telemetry.RPC_METHOD,
    telemetry.RPC_SYSTEM,
    telemetry.RPC_STATUS,
    telemetry.ERROR_TYPE,
    telemetry.NODE,
    telemetry.DEPLOYMENT,
    telemetry.VARIANT,
    telemetry.BATCH,
    telemetry.QUEUE_US,
}


@pytest.fixture(scope="module")
def traced(site: LightSite) -> Iterator[Client]:
    own = telemetry.configure(
        telemetry.TelemetryConfig("client", str(site.data / "traces" / "client.jsonl"), sample_ratio=0.0)
    )
    with connect(site.data, telemetry=own) as client:
        client.inference.predict(CAMERA_B, site.image, sealed=True)  # what is done once is done
        yield client


def spans_of(site: LightSite, trace_id: str, services: int) -> list[SpanLine]:
    return wait_for_trace(site.data / "traces", trace_id, services)


def edges(spans: list[SpanLine]) -> set[tuple[str, str]]:
    """(parent, child) of every span as ``service:name``; the root's parent is empty."""
    labels = {span.span_id: f"{span.service}:{span.name}" for span in spans}
    return {(labels.get(span.parent_id, ""), labels[span.span_id]) for span in spans}


def test_a_sealed_request_is_one_tree(site: LightSite, traced: Client) -> None:
    _, trace_id = traced.inference.predict_traced(CAMERA_B, site.image, sealed=True)
    spans = spans_of(site, trace_id, 3)
    assert edges(spans) == {
        ("", "client:client.predict"),
        ("client:client.predict", "client:seal.seal"),
        ("client:client.predict", f"client:/{SEALED}"),
        (f"client:/{SEALED}", f"inference:{SEALED}"),
        (f"inference:{SEALED}", "inference:lane.call"),
        ("inference:lane.call", f"worker:{SEALED}"),
        (f"worker:{SEALED}", "worker:seal.open"),
        (f"worker:{SEALED}", "worker:model.run"),
        (f"worker:{SEALED}", "worker:seal.seal"),
        ("client:client.predict", "client:seal.open"),
    }
    assert len(spans) == 10
    inside = {span.span_id: span for span in spans}
    for span in spans:
        parent = inside.get(span.parent_id)
        assert parent is None or parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns, span.name


@pytest.mark.parametrize(("options", "hops"), [({}, ["inference", "worker"]), ({"via": "direct"}, ["worker"])])
def test_a_plain_request_is_one_tree(
    site: LightSite, traced: Client, options: dict[str, object], hops: list[str]
) -> None:
    traced.inference.predict(CAMERA_B, site.image, **options)
    _, trace_id = traced.inference.predict_traced(CAMERA_B, site.image, **options)
    found = edges(spans_of(site, trace_id, 1 + len(hops)))
    assert ("client:client.predict", f"client:/{INFER}") in found
    assert (f"client:/{INFER}", f"{hops[0]}:{INFER}") in found
    assert (f"worker:{INFER}", "worker:model.run") in found
    assert {label.partition(":")[0] for _, label in found} == {"client", *hops}


def test_a_refusal_is_in_the_trace(site: LightSite, traced: Client) -> None:
    from sealane.errors import InvalidArgument

    with traced.inference.traced() as trace_id, pytest.raises(InvalidArgument):
        traced.inference.predict(CAMERA_B, {"image": site.rows[:1].reshape(1, 64)})
    spans = spans_of(site, trace_id, 3)
    failed = [span for span in spans if span.name == INFER]
    assert {span.service for span in failed} == {"inference", "worker"}
    assert all(span.attributes[telemetry.RPC_STATUS] == "INVALID_ARGUMENT" for span in failed)


def test_no_attribute_holds_a_payload_or_a_token(site: LightSite, traced: Client) -> None:
    tokens = [traced.token("sealane-inference", bound=bound) for bound in (False, True)]
    answer, _ = traced.inference.predict_traced(CAMERA_B, site.image, sealed=True)
    _, trace_id = traced.inference.predict_traced(CAMERA_B, site.image)
    spans = spans_of(site, trace_id, 3)
    assert {key for span in spans for key in span.attributes} <= ALLOWED
    (run,) = [span for span in spans if span.name == telemetry.SPAN_MODEL]
    assert run.attributes[telemetry.NODE] == EDGE
    assert run.attributes[telemetry.BATCH] == 1
    assert int(run.attributes[telemetry.QUEUE_US]) >= 0
    assert run.attributes[telemetry.DEPLOYMENT] == f"projects/default/deployments/{CAMERA_B}"
    everything = "".join(path.read_text() for path in (site.data / "traces").glob("*.jsonl"))
    secret = json.loads((site.data / "admin.json").read_text())["client_secret"]
    for text in (*tokens, *(part for token in tokens for part in token.split(".")[1:]), secret):
        assert text not in everything
    for array in (site.rows[0], answer["probabilities"]):
        assert base64.b64encode(array.tobytes()).decode()[:40] not in everything


def test_an_untraced_call_leaves_no_span(site: LightSite, traced: Client) -> None:
    def lines() -> int:
        return sum(len(path.read_text().splitlines()) for path in (site.data / "traces").glob("*.jsonl"))

    _, trace_id = traced.inference.predict_traced(CAMERA_B, site.image)
    spans_of(site, trace_id, 3)
    threading.Event().wait(0.5)  # longer than spans are held back
    before = lines()
    for _ in range(20):
        traced.inference.predict(CAMERA_B, site.image)
    threading.Event().wait(0.5)
    assert lines() == before


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.names: set[tuple[str, str]] = set()
        self.arrived = threading.Event()

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object) -> object:
        for resource in request.resource_spans:
            (service,) = (
                item.value.string_value for item in resource.resource.attributes if item.key == "service.name"
            )
            self.names |= {(service, span.name) for scope in resource.scope_spans for span in scope.spans}
        self.arrived.set()
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server, collector = grpc.server(futures.ThreadPoolExecutor(2)), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(0)


def test_spans_go_to_an_otlp_collector(collector: tuple[Collector, str], tmp_path: Path) -> None:
    received, endpoint = collector
    own = telemetry.configure(telemetry.TelemetryConfig("inference", otlp_endpoint=endpoint, sample_ratio=1.0))
    span = own.start("lane.call", SpanKind.INTERNAL, "")
    assert span is not None
    span.end()
    assert received.arrived.wait(10)
    assert received.names == {("inference", "lane.call")}
