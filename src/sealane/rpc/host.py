"""Runs an asyncio service: two listeners, ``ports.json`` when it serves, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc.aio

from sealane.rpc import limits
from sealane.rpc.dispatch import Served
from sealane.rpc.health import Health
from sealane.rpc.middleware import Chain
from sealane.rpc.server import build
from sealane.security import tls


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where a service listens.

    Args:
        client: ``host:port`` of the client port (server TLS and a token).
        mesh: ``host:port`` of the mesh port (client certificate required).
        message_bytes: largest message on either.
        drain_seconds: how long calls in flight may take after SIGTERM.
    """

    client: str
    mesh: str
    message_bytes: int = limits.CONTROL_MESSAGE_BYTES
    drain_seconds: float = 5.0


class _Terminable(Protocol):
    async def wait_for_termination(self) -> object: ...


class Face(Protocol):
    """A listener that speaks something else than gRPC."""

    name: str
    """By which ``ports.json`` knows it."""

    async def start(self, identity: tls.PeerIdentity) -> int:
        """Listen; returns the port."""
        ...

    async def wait_for_termination(self) -> None:
        """Wait until it ends; raises what ended it."""
        ...

    async def stop(self) -> None:
        """Finish what runs and close."""
        ...


class Host:
    """The two servers of a service, its other faces, and their health."""

    def __init__(
        self, services: Sequence[Served], chain: Chain, listeners: Listeners, faces: Sequence[Face] = ()
    ) -> None:
        names = tuple(served.foreign_name or served.descriptor.full_name for served in services)
        self.health = Health(names)
        everything = [*services, self.health.served_aio()]
        size = listeners.message_bytes
        self._client = build(everything, chain, mesh=False, options=limits.client_port(size))
        self._mesh = build(everything, chain, mesh=True, options=limits.mesh_port(size))
        self._faces = tuple(faces)
        self._listeners = listeners
        self._stopping = False

    async def start(self, identity: tls.PeerIdentity) -> dict[str, int]:
        """Listen; returns the ports by name."""
        ports = {
            "client": self._listen(self._client, self._listeners.client, identity, mesh=False),
            "mesh": self._listen(self._mesh, self._listeners.mesh, identity, mesh=True),
        }
        await self._client.start()
        await self._mesh.start()
        for face in self._faces:
            ports[face.name] = await face.start(identity)
        return ports

    async def ended(self) -> None:
        """Wait until a listener ends before it was asked to, which is a bug; raises what ended it."""
        waits = [asyncio.create_task(server.wait_for_termination()) for server in self._servers()]
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping:
            for wait in done:
                wait.result()
            raise OSError("a listener has ended by itself")

    async def stop(self) -> None:
        """Drain: no new work, a moment for balancers to see it, then wait for what runs."""
        self._stopping = True
        self.health.set(False)
        grace = self._listeners.drain_seconds
        # The mesh goes last: what clients still wait for may travel over its streams, which never end by themselves.
        await asyncio.gather(self._client.stop(grace), *(face.stop() for face in self._faces))
        await self._mesh.stop(min(grace, 1.0))

    def _servers(self) -> list[_Terminable]:
        return [self._client, self._mesh, *self._faces]

    def _listen(self, server: grpc.aio.Server, address: str, identity: tls.PeerIdentity, *, mesh: bool) -> int:
        port = server.add_secure_port(address, tls.server_credentials(identity, mesh=mesh))
        if port == 0:
            raise OSError(f"cannot listen on {address}; is the port taken?")
        return port


async def until_terminated(
    server: Host, on_start: Callable[[], None] = lambda: None, loops: Sequence[asyncio.Task[None]] = ()
) -> None:
    """Wait for SIGTERM or SIGINT. A listener or a loop that ends is a bug: its exception ends the service.

    So whoever looks after the process starts it again, instead of one that lives and hears nobody.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    on_start()
    waiter = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(server.ended())
    done, _ = await asyncio.wait({waiter, ended, *loops}, return_when=asyncio.FIRST_COMPLETED)
    for task in done - {waiter}:
        task.result()


def announce(data_dir: Path, ports: dict[str, int]) -> None:
    """Write ``ports.json``: the service is SERVING there."""
    path = data_dir / "ports.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({**ports, "pid": os.getpid()}))
    temporary.replace(path)


def withdraw(data_dir: Path) -> None:
    """Remove ``ports.json``: nobody listens there any more."""
    with contextlib.suppress(FileNotFoundError):
        (data_dir / "ports.json").unlink()
