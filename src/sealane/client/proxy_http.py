"""The HTTP port of the local proxy: the REST forms of both protocols, sealed as the gRPC port seals.

A browser on this machine can be made to call loopback by any page that it shows, with the rights of whoever runs the
proxy. So what a browser sends is refused: a request with an origin, or for a host that is not this machine by name.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from sealane.client.prediction import INFER_PATH
from sealane.client.proxy import Proxy, check_address
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, PermissionDenied, SealaneError
from sealane.protocols import tfserving
from sealane.protocols.call import ModelDescription, Target
from sealane.protocols.peek import target_of as oip_target
from sealane.rest import openinference_endpoints, tfserving_endpoints
from sealane.rest.bodies import BODY_BYTES, JSON_BYTES, coding_of, deflate, inflate, too_large, wanted_coding
from sealane.rest.status import nowhere, refusal
from sealane.rest.table import EVENTS, Endpoint, Question, Reply, Table, target_of
from sealane.rest.tfserving_endpoints import METADATA, metadata_request
from sealane.rpc import limits
from sealane.rpc.status import translate
from sealane.rpc.transport import outward

#: Connections at once; more are closed as they come.
CONNECTIONS = 128
#: A connection on which nothing comes for so long ends.
IDLE_SECONDS = 60.0
#: What is known of a model's signatures is asked for again after so long: its labels may have moved.
SIGNATURE_SECONDS = 5.0
_MODELS = 256
#: The rest of a body that was refused is read for so long, so that its sender reads the refusal.
_REST_SECONDS = 2.0


class HttpPort:
    """The port.

    Args:
        proxy: what seals and sends; it is not stopped with this.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._table = Table([*openinference_endpoints.endpoints(), *tfserving_endpoints.endpoints()])
        self._models: dict[Target, tuple[float, ModelDescription]] = {}
        self._server: _Server | None = None

    def listen(self, address: str) -> int:
        """Bind and serve.

        Args:
            address: ``host:port`` on loopback, port 0 for any.

        Returns:
            The port.

        Raises:
            InvalidArgument: an address that others can reach, or one that cannot be bound.
        """
        check_http_address(address)
        host, _, port = address.rpartition(":")
        try:
            self._server = _Server(self, host.strip("[]"), int(port))
        except (OSError, OverflowError) as error:
            raise InvalidArgument(f"cannot listen on {address}; is it in use?", field="http") from error
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="proxy-http", daemon=True).start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Take no more requests; those under way are answered."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.end_idle()

    def answer(self, verb: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """The answer to a request; refusals too."""
        path = unquote(path.partition("?")[0])
        found = self._table.find(verb, path)
        endpoint, of_tfserving = found.endpoint, path.startswith("/v1/")
        try:
            _check_caller(headers)
            if endpoint is None:
                return nowhere(verb, path, found.verbs, "docs/http.md")
            coding = coding_of(headers)
            question = Question(target_of(found.values), headers, inflate(body, coding) if coding else body)
            return self._ask(endpoint, question)
        except Exception as error:  # the translator: the one place that may catch all
            failure = translate(error, "")
            return refusal(outward(failure, endpoint.method if endpoint else ""), "", tfserving=of_tfserving)

    def _ask(self, endpoint: Endpoint, question: Question) -> Reply:
        deadline = time.monotonic() + limits.UNARY_SECONDS
        if endpoint.weigh(question) > JSON_BYTES:
            raise InvalidArgument(
                f"the JSON is larger than {JSON_BYTES} bytes; send the tensors in binary, or fewer rows a call",
                reason="REQUEST_TOO_LARGE",
            )
        if endpoint.needs_model(question):
            question = replace(question, model=self._model(endpoint, question.target, deadline))
        asked = endpoint.ask(question)
        # A sealed stream has one answer for each request, so it is a call.
        method = INFER_PATH if endpoint.streams else endpoint.method
        reply = asked.tell(self._proxy.answer(method, asked.message, deadline))
        if not endpoint.streams:
            return reply
        return replace(reply, body=(b"data: ", *reply.body, b"\n\n"), media_type=EVENTS)

    def _model(self, endpoint: Endpoint, target: Target, deadline: float) -> ModelDescription:
        target = target if endpoint.tfserving else oip_target(target.model, target.version)
        asked, known = self._models.get(target, (0.0, None))
        if known is not None and time.monotonic() - asked < SIGNATURE_SECONDS:
            return known
        answer = self._proxy.answer(METADATA, metadata_request(target), deadline)
        found = tfserving.decode_metadata(tfs.GetModelMetadataResponse.FromString(answer))
        if len(self._models) >= _MODELS:
            self._models.clear()
        self._models[target] = (time.monotonic(), found)
        return found


def check_http_address(address: str) -> None:
    """Whether nobody but this machine can reach an address, and HTTP can be served there.

    Raises:
        InvalidArgument: others can, or it is no host and port.
    """
    if address.startswith("unix:"):
        raise InvalidArgument("HTTP is served on host:port; give a loopback address", field="http")
    check_address(address)


def _check_caller(headers: Mapping[str, str]) -> None:
    host = headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if not _is_local(name) or "origin" in headers or "sec-fetch-site" in headers:
        raise PermissionDenied(
            "the proxy does not serve browsers, nor hosts by other names; call it as 127.0.0.1 from an application",
            reason="NOT_LOCAL",
        )


def _is_local(name: str) -> bool:
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTIONS

    def __init__(self, port: HttpPort, host: str, number: int) -> None:
        self.port = port
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__((host, number), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._open) >= CONNECTIONS
            if not full:
                self._open.add(request)
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)

    def end_idle(self) -> None:
        """Read no more of any connection, so that those end which wait for a request."""
        with self._lock:
            for request in self._open:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RD)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is nobody's error, and what it sent is in no log."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Server

    def do_GET(self) -> None:
        """Answer a request, whatever its verb."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        if isinstance(body, SealaneError):
            self.close_connection = True  # what follows is not known to be a request
            self._send(refusal(body, "", tfserving=self.path.startswith("/v1/")), headers)
            self._read_rest()
        else:
            self._send(self.server.port.answer(self.command, self.path, headers, body), headers)

    do_POST = do_HEAD = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def handle_expect_100(self) -> bool:
        """Tell those that wait for it to send the body, unless it will be refused."""
        length = self.headers.get("content-length", "")
        if "transfer-encoding" not in self.headers and not (length.isdecimal() and int(length[:20]) > BODY_BYTES):
            super().handle_expect_100()
            self.wfile.flush()
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request, as everything else is refused."""
        self.close_connection = True
        failure = InvalidArgument(f"no request that is served here: {message or code}", reason="MALFORMED_REQUEST")
        self.command = getattr(self, "command", None) or ""  # may not be known yet
        self._send(replace(refusal(failure, "", tfserving=False), status=code), {})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: request lines hold names of models."""

    def _body(self, headers: Mapping[str, str]) -> bytes | SealaneError:
        lengths = self.headers.get_all("content-length") or []
        if "transfer-encoding" in headers or len(lengths) > 1 or not all(item.isdecimal() for item in lengths):
            return InvalidArgument("send one content-length, and the body as it is", reason="LENGTH_REQUIRED")
        size = int(lengths[0][:20]) if lengths else 0
        if size > BODY_BYTES:
            return too_large()
        body = self.rfile.read(size)
        if len(body) < size:
            return InvalidArgument("the body ends before its length", reason="MALFORMED_REQUEST")
        return body

    def _send(self, reply: Reply, headers: Mapping[str, str]) -> None:
        pieces, size = reply.body, sum(map(len, reply.body))
        told = [("content-type", reply.media_type), *reply.headers]
        if coding := wanted_coding(headers, size):
            pieces = (deflate(pieces, coding),)
            size = len(pieces[0])
            told.append(("content-encoding", coding))
        self.send_response_only(reply.status)
        for name, value in (*told, ("content-length", str(size)), ("vary", "accept-encoding")):
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            for piece in pieces:
                self.wfile.write(piece)

    def _read_rest(self) -> None:
        # Closed with something unread, the connection is reset, and the answer is lost with it.
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _REST_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            self.connection.settimeout(left)
            if not self.rfile.read1(1 << 16):
                return
