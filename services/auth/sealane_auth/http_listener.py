"""The HTTPS listener of auth, run by uvicorn inside the service's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sealane.security import tls

#: A connection has so long to send a whole request, from when it is made and from each answer on; uvicorn itself waits
#: for ever for the first one, and for bodies.
REQUEST_SECONDS = 10.0
#: Connections at the same time; idle ones count.
CONNECTIONS = 1000


class _Protocol(H11Protocol):
    """Closes connections on which no request comes."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._wait_for_request()

    def on_response_complete(self) -> None:
        """Begin to wait for the next one."""
        super().on_response_complete()
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self._timer = self.loop.call_later(REQUEST_SECONDS, self._close_if_none)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_if_none(self) -> None:
        whole = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if not whole:  # a whole request is being answered, and the wait begins again with its answer
            self.transport.abort()  # to say goodbye would be to wait for him again


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the host has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class HttpListener:
    """The HTTPS listener while it runs."""

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None]) -> None:
        self._server = server
        self._task = task

    @classmethod
    async def start(cls, application: object, address: str, identity: tls.PeerIdentity) -> HttpListener:
        """Listen on ``host:port``.

        Raises:
            OSError: the port is taken.
        """
        name, _, port = address.rpartition(":")
        settings = uvicorn.Config(
            application,  # type: ignore[arg-type]  # an ASGI application
            host=name,
            port=int(port),
            ssl_keyfile=str(identity.directory / tls.KEY),
            ssl_certfile=str(identity.directory / tls.CHAIN),
            log_level="warning",
            lifespan="off",
            server_header=False,
            http=_Protocol,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=3,
        )
        server = _Server(settings)
        task = asyncio.create_task(server.serve())
        while not server.started:
            if task.done():
                raise OSError(f"cannot listen on {address}; is the port taken?")
            await asyncio.sleep(0.01)
        return cls(server, task)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def reload(self, identity: tls.PeerIdentity) -> None:
        """Use the files of `identity` for new connections."""
        context = self._server.config.ssl
        assert context is not None
        context.load_cert_chain(identity.directory / tls.CHAIN, identity.directory / tls.KEY)

    async def stop(self) -> None:
        """Finish what runs and close."""
        self._server.should_exit = True
        await self._task
