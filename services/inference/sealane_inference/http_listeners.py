"""The gateway's HTTPS listeners, as its host starts and stops them."""

from __future__ import annotations

from typing import Protocol

from sealane.rpc.http_listener import HttpListener, Patience
from sealane.security import tls
from sealane_inference.http_inflow import Receive
from sealane_inference.http_scope import Scope, Send

#: A body of 64 MiB takes its time over a slow link; clients keep connections between requests.
PATIENCE = Patience(body=60.0, idle=60.0, drain=5)


class Application(Protocol):
    """What a listener serves, in the form of ASGI."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        ...

    async def close(self) -> None:
        """End what was started for it."""
        ...


class HttpServer:
    """One listener.

    Args:
        name: by which ``ports.json`` knows it.
        address: ``host:port``.
        application: what it serves.
    """

    def __init__(self, name: str, address: str, application: Application) -> None:
        self.name = name
        self._address = address
        self._application = application
        self._listener: HttpListener | None = None

    async def start(self, identity: tls.PeerIdentity) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port is taken.
        """
        self._listener = await HttpListener.start(self._application, self._address, identity, PATIENCE)
        return self._listener.port

    async def wait_for_termination(self) -> None:
        """Wait until it ends; raises what ended it."""
        assert self._listener is not None
        await self._listener.ended()

    async def stop(self) -> None:
        """Finish what runs and close."""
        if self._listener is not None:
            await self._listener.stop()
        await self._application.close()
