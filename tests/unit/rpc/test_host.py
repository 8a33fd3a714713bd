"""A service that hears nobody any more ends, instead of living on."""

from __future__ import annotations

import asyncio

import pytest

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.rpc import host
from sealane.rpc.middleware import Chain
from sealane.rpc.order import Guard, standard
from sealane.security.keys import KeySet, Published
from sealane.security.tokens import ISSUER, TokenVerifier


class Listener:
    """Ends when told, in a way that it is told."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.failure: Exception | None = None

    async def wait_for_termination(self) -> None:
        await self.over.wait()
        if self.failure is not None:
            raise self.failure

    async def stop(self, grace: float) -> None:
        self.over.set()


def made() -> tuple[host.Host, Listener, Listener]:
    keys = KeySet(lambda: Published({}))
    verifier = TokenVerifier(keys, issuer=ISSUER, audience="sealane-test", clock=SystemClock())
    chain = Chain(standard(telemetry_=telemetry.disabled(), guard=Guard(verifier)))
    server = host.Host([], chain, host.Listeners("127.0.0.1:0", "127.0.0.1:0", drain_seconds=0.1))
    client, mesh = Listener(), Listener()
    server._client, server._mesh = client, mesh  # type: ignore[assignment]
    return server, client, mesh


@pytest.mark.parametrize("failure", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), None])
def test_a_listener_that_ends_by_itself_ends_the_service(failure: Exception | None) -> None:
    async def run() -> None:
        server, _, mesh = made()
        running = asyncio.create_task(host.until_terminated(server))
        await asyncio.sleep(0)
        assert not running.done()
        mesh.failure = failure
        mesh.over.set()
        with pytest.raises(UnicodeDecodeError if failure else OSError):
            async with asyncio.timeout(5):
                await running

    asyncio.run(run())


def test_listeners_that_are_stopped_end_nothing() -> None:
    async def run() -> None:
        server, _, _ = made()
        waiting = asyncio.create_task(server.ended())
        await asyncio.sleep(0)
        await server.stop()
        async with asyncio.timeout(5):
            await waiting

    asyncio.run(run())
