"""The gateway's HTTPS listeners, as its host starts and stops them."""

from __future__ import annotations

from sealane.rpc.http_listener import HttpListener, Patience
from sealane.security import tls

#: A body of 64 MiB takes its time over a slow link; clients keep connections between requests.
PATIENCE = Patience(body=60.0, idle=60.0, drain=5)


class HttpServer:
    """One listener.

    Args:
        name: by which ``ports.json`` knows it.
        address: ``host:port``.
        application: what it serves, in the form of ASGI.
    """

    def __init__(self, name: str, address: str, application: object) -> None:
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
