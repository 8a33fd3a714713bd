"""An HTTPS listener, run by uvicorn inside a service's own event loop. TLS 1.3 and HTTP/1.1.

Nobody holds a connection without using it: a head, a body and the pause between two requests have their time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sealane.rpc.http_guests import Connection, Guests, network_of
from sealane.rpc.limits import HEAD_BYTES
from sealane.security import tls

#: A connection has so long to send a whole request, from when it is made and from each answer on; uvicorn itself waits
#: for ever for the first one, and for bodies.
REQUEST_SECONDS = 10.0
#: A connection of which no request was a known caller's has so long for the next one.
STRANGER_SECONDS = 5.0
#: A TLS handshake takes no longer, as on the gRPC ports.
HANDSHAKE_SECONDS = 5.0
#: Who takes nothing of an answer for so long is not waited for.
STALL_SECONDS = 15.0
#: Bytes of an answer that wait in a connection; the rest waits in the application.
WRITE_BYTES = 64 * 1024
#: Where the state of a request's scope has its :class:`Connection`.
CONNECTION = "connection"
#: uvicorn's own limit of a pause between two requests, which holds where it is shorter than ours.
_KEEP_ALIVE = 5
#: How often a renewed certificate is looked for.
RENEWAL_SECONDS = 30.0


_Send = Callable[[MutableMapping[str, object]], Awaitable[None]]
_Application = Callable[[Mapping[str, object], object, _Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a listener waits.

    Args:
        body: for a whole request of which the head is there, from when the wait for it began; 0 is as long as for the
            head.
        idle: between two requests of a connection on which a known caller was heard; 0 is as long as for the head.
        drain: for what runs, when it stops.
    """

    body: float = 0.0
    idle: float = 0.0
    drain: int = 3


class _Protocol(H11Protocol):
    """Closes connections on which no request comes, or on which no answer goes."""

    patience = Patience()
    guests = Guests()
    connection: Connection | None = None
    _network = ""
    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request."""
        plain = cast(asyncio.Transport, transport)
        super().connection_made(plain)
        plain.set_write_buffer_limits(high=WRITE_BYTES)
        self._network = network_of(str((self.client or ("",))[0]))
        if not self.guests.admit(self._network):
            plain.abort()
            return
        self.connection = Connection(plain, lambda: self.guests.introduce(self._network))
        self.app_state = {**self.app_state, CONNECTION: self.connection}
        self._wait_for_request(REQUEST_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Take nothing from a connection that was not admitted."""
        if self.connection is not None:
            super().data_received(data)

    def pause_writing(self) -> None:
        """Begin to wait until the peer takes what was written."""
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """He took it."""
        super().resume_writing()
        self._stop_stall()

    def on_response_complete(self) -> None:
        """Begin to wait for the next one."""
        super().on_response_complete()
        self._wait_for_request(max(REQUEST_SECONDS, self.patience.idle) if self._known() else STRANGER_SECONDS)

    def shutdown(self) -> None:
        """Close, and do not wait for a caller that is idle to say goodbye."""
        super().shutdown()
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.get_write_buffer_size():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        self._stop_stall()
        if self.connection is not None:
            self.guests.leave(self._network, known=self.connection.known)
            self.connection = None
        self._unset_keepalive_if_required()  # uvicorn leaves it where the peer broke off: a minute of its memory
        super().connection_lost(exc)

    def _wait_for_request(self, seconds: float) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self._since = self.loop.time()
            self._timer = self.loop.call_later(seconds, self._close_if_none)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _known(self) -> bool:
        return self.connection is not None and self.connection.known

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _close_if_none(self) -> None:
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked and not self.cycle.more_body:
            return  # a whole request is being answered, and the wait begins again with its answer
        left = self._since + max(self.patience.body, self.patience.idle if self._known() else 0.0) - self.loop.time()
        if asked and self.patience.body and left > 0:
            self._timer = self.loop.call_later(left, self._close_if_none)
            return
        self.transport.abort()  # to say goodbye would be to wait for him again


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the host has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with a time for handshakes: uvicorn leaves asyncio's, which is a minute."""
        config = self.config

        def accepted() -> asyncio.Protocol:
            made = cast(type[_Protocol], config.http_protocol_class)
            return made(config=config, server_state=self.server_state, app_state={})

        server = await asyncio.get_running_loop().create_server(
            accepted,
            config.host,
            config.port,
            ssl=config.ssl,
            backlog=config.backlog,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
        )
        self.servers = [server]
        self.started = True


class HttpListener:
    """The HTTPS listener while it runs."""

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None], identity: tls.PeerIdentity) -> None:
        self._server = server
        self._task = task
        self._identity = identity
        self._timer: asyncio.TimerHandle | None = None
        self._seen = self._mtime(identity)
        self._watch()

    @classmethod
    async def start(
        cls, application: object, address: str, identity: tls.PeerIdentity, patience: Patience | None = None
    ) -> HttpListener:
        """Listen on ``host:port``.

        Raises:
            OSError: the port is taken.
        """
        name, _, port = address.rpartition(":")
        settings = uvicorn.Config(
            _unambiguous(cast(_Application, application)),
            host=name,
            port=int(port),
            ssl_keyfile=str(identity.directory / tls.KEY),
            ssl_certfile=str(identity.directory / tls.CHAIN),
            log_level="warning",
            lifespan="off",
            server_header=False,
            date_header=False,
            http=_protocol(patience or Patience()),
            h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_keep_alive=max(_KEEP_ALIVE, int(patience.idle) if patience else 0),
            timeout_graceful_shutdown=(patience or Patience()).drain,
        )
        settings.load()
        assert settings.ssl is not None
        settings.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
        server = _Server(settings)
        task = asyncio.create_task(server.serve())
        while not server.started:
            if task.done():
                raise OSError(f"cannot listen on {address}; is the port taken?") from task.exception()
            await asyncio.sleep(0.01)
        return cls(server, task, identity)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def reload(self, identity: tls.PeerIdentity) -> None:
        """Use the files of `identity` for new connections."""
        context = self._server.config.ssl
        assert context is not None
        context.load_cert_chain(identity.directory / tls.CHAIN, identity.directory / tls.KEY)

    async def ended(self) -> None:
        """Wait until it ends."""
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Finish what runs and close."""
        if self._timer is not None:
            self._timer.cancel()
        self._server.should_exit = True
        await self._task

    def _watch(self) -> None:
        mtime = self._mtime(self._identity)
        # Key and certificate are replaced one after the other: while they do not fit, the next look finds them.
        if mtime != self._seen and self._identity.fits():
            self._seen = mtime
            self.reload(self._identity)
        self._timer = asyncio.get_running_loop().call_later(RENEWAL_SECONDS, self._watch)

    @staticmethod
    def _mtime(identity: tls.PeerIdentity) -> int:
        return (identity.directory / tls.CHAIN).stat().st_mtime_ns


def _protocol(patience: Patience) -> type[_Protocol]:
    return type("_PatientProtocol", (_Protocol,), {"patience": patience, "guests": Guests()})


def _unambiguous(application: _Application) -> _Application:
    """The application without requests whose end somebody between us and the caller may see elsewhere.

    RFC 9112 section 6.1 lets a server refuse them, and wants the connection closed.
    """

    async def guarded(scope: Mapping[str, object], receive: object, send: _Send) -> None:
        headers = cast(list[tuple[bytes, bytes]], scope.get("headers", ()))
        names = {name for name, _ in headers}
        if b"content-length" not in names or b"transfer-encoding" not in names:
            await application(scope, receive, send)
            return
        body = b'{"error":"content-length and transfer-encoding exclude each other; send one of them"}'
        told = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        told.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 400, "headers": told})
        await send({"type": "http.response.body", "body": body})

    return guarded
