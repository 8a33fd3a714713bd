"""The HTTP port of the local proxy: the REST forms of both protocols, sealed as the gRPC port seals.

A browser on this machine can be made to call loopback by any page that it shows, with the rights of whoever runs the
proxy. So what a browser sends is refused: a request with an origin, or for a host that is not this machine by name.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sealane.client.proxy import INFER_PATH, Proxy, check_address
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, NotFound, PermissionDenied, SealaneError
from sealane.protocols import tfserving
from sealane.protocols.call import ModelDescription, Target
from sealane.protocols.peek import target_of as oip_target
from sealane.rest import openinference_endpoints, tfserving_endpoints
from sealane.rest.bodies import BODY_BYTES, JSON_BYTES, coding_of, deflate, inflate, too_large, wanted_coding
from sealane.rest.status import refusal
from sealane.rest.table import EVENTS, Endpoint, Question, Reply, Table, target_of
from sealane.rest.tfserving_endpoints import METADATA, metadata_request
from sealane.rpc import limits
from sealane.rpc.status import translate
from sealane.rpc.transport import outward

#: Connections at once; the next wait.
CONNECTIONS = 128
#: A connection on which nothing comes for so long ends.
IDLE_SECONDS = 60.0
#: What is known of a model's signatures is asked for again after so long: its labels may have moved.
SIGNATURE_SECONDS = 5.0
_MODELS = 256
_LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


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
        if address.startswith("unix:"):
            raise InvalidArgument("HTTP is served on host:port; give a loopback address", field="http")
        check_address(address)
        host, _, port = address.rpartition(":")
        try:
            self._server = _Server(self, host.strip("[]"), int(port))
        except (OSError, OverflowError) as error:
            raise InvalidArgument(f"cannot listen on {address}; is it in use?", field="http") from error
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="proxy-http", daemon=True).start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Take no more requests."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, verb: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """The answer to a request; refusals too."""
        path = path.partition("?")[0]
        found = self._table.find(verb, path)
        endpoint, of_tfserving = found.endpoint, path.startswith("/v1/")
        try:
            _check_caller(headers)
            if endpoint is None:
                raise _nowhere(path, found.verbs)
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


def _check_caller(headers: Mapping[str, str]) -> None:
    host = headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name.lower() not in _LOCAL or "origin" in headers or "sec-fetch-site" in headers:
        raise PermissionDenied(
            "the proxy does not serve browsers, nor hosts by other names; call it as 127.0.0.1 from an application",
            reason="NOT_LOCAL",
        )


def _nowhere(path: str, verbs: tuple[str, ...]) -> SealaneError:
    if verbs:
        return InvalidArgument(f"use {' or '.join(sorted(verbs))} here", reason="METHOD_NOT_ALLOWED")
    return NotFound("nothing is served at this path; docs/http.md says what is")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: HttpPort, host: str, number: int) -> None:
        self.port = port
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((host, number), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._places.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is nobody's error, and what it sent is in no log."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Server

    def do_GET(self) -> None:
        """Answer a question about models."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        if isinstance(body, SealaneError):
            self.close_connection = True  # what follows is not known to be a request
            reply = refusal(body, "", tfserving=self.path.startswith("/v1/"))
        else:
            reply = self.server.port.answer(self.command, self.path, headers, body)
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

    do_POST = do_HEAD = do_GET

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

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: request lines hold names of models."""
