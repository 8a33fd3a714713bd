"""Simulated relays for :mod:`bench.streams`, and a bare grpc.aio server to compare with; processes of their own.

A relay carries many nodes, so many on each connection, and does for each what a worker does: it registers, answers
a ping at once, and sends a heartbeat when none was sent for an interval. What it saw it says on a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from sealane.rpc import limits
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import node_service_pb2 as node_pb
from sealane.security import tls

CONNECT = "/sealane.scheduler.v1.FleetService/Connect"
GIB = 1 << 30
#: A heartbeat counts as late where the one before is so many intervals ago; 2.4 raise suspicion.
LATE = 1.1
#: Registrations under way at the same time, on each connection.
AT_ONCE = 10
_PING = pb.SchedulerMessage(ping=pb.Ping(sequence=1)).SerializeToString()[0]
_DESIRED = pb.SchedulerMessage(desired=pb.DesiredState(revision=1)).SerializeToString()[0]


def register(statement: str) -> bytes:
    """The first message of a worker with a model runtime."""
    told = pb.Register(
        sealing_statement=statement,
        capacity=node_pb.Capacity(
            cpu_milli=4000, memory_bytes=4 * GIB, disk_bytes=32 * GIB, device_class="arm64", speed=1
        ),
        runtimes=[
            node_pb.Runtime(name="litert", version="2.1.0", formats=["LITERT"], devices=["cpu"]),
            node_pb.Runtime(name="onnxruntime", version="1.26.0", formats=["ONNX"], devices=["cpu"]),
        ],
        price_per_hour=0.02,
        labels={"sandbox": "full", "site": "shop"},
        endpoint="10.0.0.1:8443",
        tls_name="edge.node.sealane",
    )
    return pb.NodeMessage(register=told).SerializeToString()


@dataclass(slots=True)
class Seen:
    """What happened in this process since it was last asked."""

    beats: int = 0
    late: int = 0
    pings: int = 0
    ended: list[str] = field(default_factory=list)
    desired: int = 0
    changes: list[tuple[str, int, float]] = field(default_factory=list)
    """Node, assignments, time since 1970: of desired states after a node's first."""


@dataclass(eq=False, slots=True)
class Node:
    """One node's stream."""

    name: str
    statement: str
    renewed: str
    call: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
    interval: float = 5.0
    due: float = 0.0
    sequence: int = 0
    told: int = 0
    sent: float = 0.0
    sending: bool = False


class Connection:
    """One channel, its nodes, and the one task that sends their heartbeats."""

    def __init__(self, channel: grpc.aio.Channel, nodes: list[Node], seen: Seen) -> None:
        self._open = channel.stream_stream(CONNECT)
        self._nodes = nodes
        self._seen = seen
        self._dues: list[tuple[float, int, Node]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Register all, a few at a time."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def begin(node: Node) -> None:
            async with gate:
                node.call = self._open(wait_for_ready=True)
                await node.call.write(register(node.statement))
                welcome = pb.SchedulerMessage.FromString(await node.call.read())
                node.interval = welcome.welcome.heartbeat_interval.ToNanoseconds() / 1e9
            self._schedule(node, random.random())
            self._tasks.append(asyncio.create_task(self._read(node)))

        await asyncio.gather(*(begin(node) for node in self._nodes))
        self._tasks.append(asyncio.create_task(self._beat()))

    def renew(self, share: float) -> None:
        """Let some of the nodes have a new statement, sent with their next heartbeat."""
        for node in self._nodes[: int(len(self._nodes) * share)]:
            node.statement = node.renewed

    async def _read(self, node: Node) -> None:
        assert node.call is not None
        try:
            while (body := await node.call.read()) is not grpc.aio.EOF:
                if body[0] == _PING:
                    node.sequence = pb.SchedulerMessage.FromString(body).ping.sequence
                    self._seen.pings += 1
                    await self._send(node)
                    self._schedule(node)
                elif body[0] == _DESIRED:
                    self._take(node, pb.SchedulerMessage.FromString(body).desired)
                else:
                    told = pb.SchedulerMessage.FromString(body).welcome.heartbeat_interval
                    node.interval = told.ToNanoseconds() / 1e9
                    await self._send(node)
                    self._schedule(node)
            self._seen.ended.append(f"{node.name}: {await node.call.code()} {await node.call.details()}")
        except grpc.aio.AioRpcError as error:
            self._seen.ended.append(f"{node.name}: {error.code()} {error.details()}")

    def _take(self, node: Node, desired: pb.DesiredState) -> None:
        self._seen.desired += 1
        node.told += 1
        if node.told > 1:
            self._seen.changes.append((node.name, len(desired.assignments), time.time()))

    async def _beat(self) -> None:
        while True:
            now = time.monotonic()
            while self._dues and self._dues[0][0] <= now:
                due, _, node = heapq.heappop(self._dues)
                if due == node.due:
                    await self._send(node)
                    self._schedule(node)
            await asyncio.sleep(0.02)

    def _schedule(self, node: Node, share: float = 1.0) -> None:
        node.due = time.monotonic() + node.interval * random.uniform(0.8, 1.0) * share
        heapq.heappush(self._dues, (node.due, id(node), node))

    async def _send(self, node: Node) -> None:
        assert node.call is not None
        if node.sending:
            return  # grpc.aio takes one message at a time, and the one under way is a heartbeat
        node.sending = True
        beat = pb.Heartbeat(ping_sequence=node.sequence, in_flight=1, free_memory_bytes=2 * GIB)
        if node.statement is node.renewed and node.renewed:
            beat.sealing_statement, node.renewed = node.renewed, ""
        try:
            await node.call.write(pb.NodeMessage(heartbeat=beat).SerializeToString())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # its reader tells why the stream ended
        finally:
            node.sending = False
        now = time.monotonic()
        self._seen.late += bool(node.sent) and now - node.sent > node.interval * LATE
        self._seen.beats, node.sent = self._seen.beats + 1, now


async def relay(arguments: argparse.Namespace) -> None:
    """Open all streams, then answer commands."""
    folder, seen = Path(arguments.folder), Seen()
    credentials = grpc.ssl_channel_credentials(
        *((folder / name).read_bytes() for name in (tls.TRUST, tls.KEY, tls.CHAIN))
    )
    told = json.loads((folder / "statements.json").read_text())
    nodes = [Node(name, first, second) for name, first, second in told]
    # A handshake waits its turn behind those of a hundred others: it must not be given up and begun anew.
    patient = {"grpc.min_reconnect_backoff_ms": 10_000, "grpc.max_reconnect_backoff_ms": 20_000}
    options = list({**dict(limits.channel()), **patient}.items())
    options += [("grpc.ssl_target_name_override", arguments.name), ("grpc.use_local_subchannel_pool", 1)]
    connections = []
    for begin in range(0, len(nodes), arguments.each):
        channel = grpc.aio.secure_channel(arguments.address, credentials, options=options)
        connections.append(Connection(channel, nodes[begin : begin + arguments.each], seen))
    for group in range(0, len(connections), 5):
        await asyncio.gather(*(each.start() for each in connections[group : group + 5]))
    _say({"streams": len(nodes)})
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip() == "renew":
            for each in connections:
                each.renew(arguments.renewed)
            continue
        _say({name: getattr(seen, name) for name in Seen.__slots__})
        seen.beats = seen.late = seen.pings = seen.desired = 0
        seen.changes, seen.ended = [], []


async def bare(arguments: argparse.Namespace) -> None:
    """What grpc.aio alone takes: the same streams, each with a handler that reads and does nothing else."""
    folder = Path(arguments.folder)
    key, chain, trust = ((folder / name).read_bytes() for name in (tls.KEY, tls.CHAIN, tls.TRUST))
    welcome = pb.Welcome()
    welcome.heartbeat_interval.FromNanoseconds(int(5e9))

    async def connect(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        await anext(aiter(requests))
        yield pb.SchedulerMessage(welcome=welcome).SerializeToString()
        async for _ in requests:
            pass

    service, _, name = CONNECT.lstrip("/").partition("/")
    handler = grpc.stream_stream_rpc_method_handler(connect)
    server = grpc.aio.server(options=limits.mesh_port(limits.CONTROL_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)], trust, True))
    await server.start()
    _say({"port": port})
    await server.wait_for_termination()


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Command line, for :mod:`bench.streams`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("relay", "bare"))
    parser.add_argument("folder")
    parser.add_argument("--address", default="")
    parser.add_argument("--name", default="")
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--renewed", type=float, default=0.0)
    wanted = parser.parse_args()
    asyncio.run(relay(wanted) if wanted.role == "relay" else bare(wanted))


if __name__ == "__main__":
    main()
