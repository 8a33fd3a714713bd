"""A worker's metrics: what its models have done, over TLS, for who may ask."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from worker_parts import Front

sys.path.insert(0, str(Path(__file__).parents[1] / "security"))
from certificates import Pki

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import NotFound
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane.tensors import Array
from sealane_worker import metrics
from sealane_worker.metrics import MetricsListener, page

TOKEN = "0123456789abcdef"
LABELS = {"model": "camera", "version": "3", "project": "p"}


def values(text: str) -> dict[str, float]:
    """Values of the families that are about the model, without the parser's own convention for counters."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("model", sample.labels.get("model_name")) == "camera" and "le" not in sample.labels:
                found[sample.name.removesuffix("_total")] = sample.value
    return found


def infer(front: Front, rows: Array) -> None:
    request = openinference.encode_request(InferenceCall(Target("camera"), {"image": rows}))
    assert oip.ModelInferResponse.FromString(front.call("/inference.GRPCInferenceService/ModelInfer", request)).outputs


def test_counts_are_those_of_the_models(front: Front, digits: tuple[Array, Array]) -> None:
    before = values(page(front.engine).decode())
    for rows in (1, 3):
        infer(front, digits[0][:rows])
    after = values(page(front.engine).decode())
    grown = {name: after[name] - before[name] for name in after}
    assert grown["nv_inference_request_success"] == 2
    assert grown["nv_inference_count"] == 4
    assert grown["nv_inference_exec_count"] == 2
    assert grown["nv_inference_compute_infer_duration_us"] > 0
    assert grown[":tensorflow:serving:runtime_latency_count"] == 2
    assert after["sealane_model_memory_bytes"] > 1 << 20


def test_the_histogram_holds_every_run(front: Front, digits: tuple[Array, Array]) -> None:
    infer(front, digits[0][:1])
    (family,) = [
        family
        for family in text_string_to_metric_families(page(front.engine).decode())
        if family.name == ":tensorflow:serving:runtime_latency"
    ]
    buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == values(page(front.engine).decode())[":tensorflow:serving:runtime_latency_count"]


@pytest.fixture
def listener(front: Front, tmp_path: Path) -> Iterator[tuple[MetricsListener, ssl.SSLContext]]:
    pki = Pki()
    made = MetricsListener(front.engine, "127.0.0.1:0", TOKEN, pki.identity(tmp_path, "node", "edge-1"))
    made.start()
    trust = ssl.create_default_context(cadata=pki.root_pem.decode())
    trust.check_hostname = False
    yield made, trust
    made.stop()


def get(port: int, trust: ssl.SSLContext, path: str, token: str = TOKEN) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=10)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_scrapers_find_it_where_they_look(listener: tuple[MetricsListener, ssl.SSLContext]) -> None:
    made, trust = listener
    for path in ("/metrics", "/monitoring/prometheus/metrics"):
        status, body = get(made.port, trust, path)
        assert status == 200 and b'nv_inference_count{model="camera"' in body
    assert get(made.port, trust, "/")[0] == 404
    assert get(made.port, trust, "/metrics", "wrong") == (401, b"")


def test_who_makes_no_handshake_keeps_nobody_waiting(listener: tuple[MetricsListener, ssl.SSLContext]) -> None:
    made, trust = listener
    silent = [socket.create_connection(("127.0.0.1", made.port), timeout=5) for _ in range(5)]
    try:
        assert get(made.port, trust, "/metrics")[0] == 200
    finally:
        for connection in silent:
            connection.close()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, OSError)):
        get(made.port, old, "/metrics")


def test_labels_name_no_more_than_the_model(front: Front) -> None:
    for family in text_string_to_metric_families(page(front.engine).decode()):
        for sample in family.samples:
            assert set(sample.labels) <= {"model", "model_name", "version", "project", "runtime", "le"}
            assert sample.labels["project"] == LABELS["project"]
    assert np.isfinite(list(values(page(front.engine).decode()).values())).all()


def test_scrapes_are_few_and_the_others_are_closed(listener: tuple[MetricsListener, ssl.SSLContext]) -> None:
    made, trust = listener
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", made.port), timeout=20) for _ in range(12)]
    try:
        until, left = time.monotonic() + 8, silent
        while len(left) > metrics.SCRAPES and time.monotonic() < until:
            left = [connection for connection in left if not is_closed(connection)]
        assert len(left) == metrics.SCRAPES
        # Each of those inside has a thread, and one that watches its time.
        assert threading.active_count() <= before + 2 * metrics.SCRAPES
        with pytest.raises(OSError):
            get(made.port, trust, "/metrics")
    finally:
        for connection in silent:
            connection.close()
    assert eventually_answered(made, trust)


def test_who_sends_byte_after_byte_is_cut_off(
    listener: tuple[MetricsListener, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, trust = listener
    monkeypatch.setattr(metrics, "SECONDS", 1.0)
    with trust.wrap_socket(socket.create_connection(("127.0.0.1", made.port), timeout=20)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\nx: ")
        with pytest.raises(OSError):
            for _ in range(400):  # twenty seconds, each byte well before a read gives up
                connection.sendall(b"a")
                time.sleep(0.05)


def test_a_model_that_goes_meanwhile_is_left_out(front: Front) -> None:
    class Going:
        """An engine whose model is unloaded after it was offered."""

        def offered(self) -> list[object]:
            return list(front.engine.offered())

        def get(self, deployment: str) -> object:
            raise NotFound("not served here")

    told = page(Going()).decode()  # type: ignore[arg-type]  # the part of an engine that the page reads
    assert "# TYPE nv_inference_count" in told
    assert values(told) == {}


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed, or does so soon."""
    connection.settimeout(0.2)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def eventually_answered(made: MetricsListener, trust: ssl.SSLContext) -> bool:
    """The places of those who left are free as soon as that is noticed."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return get(made.port, trust, "/metrics")[0] == 200
        time.sleep(0.05)
    return False
