"""The HTTPS listener of auth, run by uvicorn inside the service's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn

from sealane.security import tls


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
            limit_concurrency=100,
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
