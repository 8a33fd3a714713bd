"""The listener for scrapers on a worker: what each of its models has done, under our names, Triton's and TensorFlow's.

Scrapes are few, so the standard library's server does; it stands on a thread beside the calls.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sealane.errors import NotFound
from sealane.rpc.metrics_page import MEDIA_TYPE, PATHS, Labels, Page, histogram
from sealane.security import tls
from sealane_worker.deployment import Served
from sealane_worker.engine import Engine

#: A scraper has so long to shake hands, say what it wants and read it.
SECONDS = 10.0
#: Scrapes at the same time; more are closed.
SCRAPES = 8


class MetricsListener:
    """Answers scrapes over HTTPS.

    Args:
        engine: whose models are told.
        address: ``host:port``.
        token: what a scraper must send as its bearer token; empty for a listener on loopback.
        identity: of this worker; a renewed certificate is used from the next scrape on.
    """

    def __init__(self, engine: Engine, address: str, token: str, identity: tls.PeerIdentity) -> None:
        host, _, port = address.rpartition(":")

        class Handler(_Handler):
            """With what it answers from."""

        Handler.engine, Handler.token = engine, token.encode()
        self._server = _Server((host.strip("[]"), int(port)), Handler)
        self._server.secure(identity)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def secure(self, identity: tls.PeerIdentity) -> None:
        """TLS 1.3 alone. Handshakes are made on the threads of their scrapes: who is slow keeps nobody waiting."""
        self._identity = identity
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._seen = 0.0
        self._places = threading.BoundedSemaphore(SCRAPES)
        self._load()
        self.socket = self._context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """A thread of its own for a scrape, if there is a place for it."""
        assert isinstance(request, socket.socket)
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._places.release()
            raise

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """One scrape, which ends when its time is over, however slowly its bytes come."""
        assert isinstance(request, socket.socket)
        timer = threading.Timer(SECONDS, _cut, (request,))
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._places.release()

    def get_request(self) -> tuple[socket.socket, object]:
        """The next scrape, with the certificate of this moment."""
        self._load()
        return super().get_request()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who does not speak TLS, or leaves, is no news."""

    def _load(self) -> None:
        chain, key = self._identity.directory / tls.CHAIN, self._identity.directory / tls.KEY
        written = chain.stat().st_mtime
        if written != self._seen and self._identity.fits():
            self._context.load_cert_chain(chain, key)
            self._seen = written


class _Handler(BaseHTTPRequestHandler):
    timeout = SECONDS
    server_version, sys_version = "sealane", ""
    engine: Engine
    token: bytes

    def do_GET(self) -> None:
        """One scrape."""
        status, body = 200, b""
        said = self.headers.get("authorization", "").encode()
        if self.path not in PATHS:
            status = 404
        elif self.token and not hmac.compare_digest(said, b"Bearer " + self.token):
            status = 401
        else:
            body = page(self.engine)
        self.send_response(status)
        self.send_header("content-type", MEDIA_TYPE)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not told."""


def page(engine: Engine) -> bytes:
    """Everything."""
    served = [item for model in engine.offered() if (item := _served(engine, model.assignment.deployment))]
    written = Page()

    def count(name: str, text: str, values: list[float]) -> None:
        samples = [("", _labels(item), value) for item, value in zip(served, values, strict=True)]
        written.family(name, "counter", text, samples)

    told = [item.statistics for item in served]
    count("nv_inference_request_success", "Requests that the model answered", [item.succeeded for item in told])
    count("nv_inference_request_failure", "Requests that failed", [item.failed for item in told])
    count("nv_inference_count", "Rows that were inferred", [item.rows for item in told])
    executions = [round(sum(runs for runs, _ in item.batches.values())) for item in told]
    count("nv_inference_exec_count", "Runs of the model", [float(runs) for runs in executions])
    queued = [int(item.queue_seconds * 1e6) for item in told]
    count("nv_inference_queue_duration_us", "Microseconds in the model's queue", [float(time) for time in queued])
    spent = [int(item.run_seconds * 1e6) for item in told]
    count("nv_inference_compute_infer_duration_us", "Microseconds in the model", [float(time) for time in spent])
    shared = [float(item.shared) for item in told]
    count("sealane_shared_answers_total", "Requests that got the answer of an equal one", shared)
    native = [float(item.native) for item in told]
    count("sealane_native_answers_total", "Requests that the native front answered without Python", native)
    written.family(
        ":tensorflow:serving:runtime_latency",
        "histogram",
        "Microseconds that the model took",
        (
            sample
            for item in served
            for sample in histogram({**_tensorflow(item), "runtime": "TF1"}, item.statistics.series, 1e6)
        ),
    )
    written.family(
        "sealane_model_memory_bytes",
        "gauge",
        "Memory of the model's process",
        [("", _labels(item), item.footprint_bytes) for item in served],
    )
    return written.text()


def _served(engine: Engine, deployment: str) -> Served | None:
    try:
        return engine.get(deployment)
    except NotFound:
        return None  # unloaded since it was offered


def _cut(request: socket.socket) -> None:
    """End a connection under whoever reads from it or writes to it."""
    with contextlib.suppress(OSError):
        # Beneath TLS: TLS's own would let go of the session, and what is written after that goes out in the clear.
        socket.socket.shutdown(request, socket.SHUT_RDWR)


def _labels(item: Served) -> Labels:
    _, project, _, deployment = item.assignment.deployment.split("/")
    return {"model": deployment, "version": str(item.assignment.version), "project": project}


def _tensorflow(item: Served) -> Labels:
    labels = dict(_labels(item))
    return {"model_name": labels["model"], "project": labels["project"]}
