"""Streams of workers: who may speak for whom, who is woken by what, and how often they are heard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from test_fleet import A, B, World

from sealane.clock import ManualClock
from sealane.errors import PermissionDenied, SealaneError, Unauthenticated, Unavailable
from sealane.rpc.call import Call, Carried, Peer
from sealane.rpc.live import LiveStreams
from sealane.rpc.policy import Method, methods_of
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import node_service_pb2 as node_pb
from sealane.security import jws, statements, suites
from sealane.security.keys import KeySet, Published
from sealane.security.revocations import NODE_EVICTED, Kind, Revocations, Revoked
from sealane_scheduler.desired import DesiredStates
from sealane_scheduler.ensembles import Ensembles
from sealane_scheduler.fleet import DEAD, HEARTBEATS_PER_SECOND, READY, SUSPECT, Facts, Fleet, Patience
from sealane_scheduler.fleet_servicer import FleetServicer
from sealane_scheduler.gateways import Gateways

CONNECT: Method = methods_of(pb.DESCRIPTOR.services_by_name["FleetService"])[0]
RELAY, OTHER = "spiffe://sealane/relay/r1", "spiffe://sealane/relay/r2"


class Tasks:
    """Loops of jobs in which nothing is under way; remembers who ended what."""

    lease_seconds = 10.0

    def __init__(self) -> None:
        self.held: list[str] = []

    def wake(self) -> None:
        """Nothing waits."""

    async def owns(self, held: object) -> bool:
        return True

    async def renew(self, held: SimpleNamespace, request: object) -> None:
        self.held.append(held.node)

    async def finish(self, held: SimpleNamespace, request: object) -> None:
        self.held.append(held.node)


class Idle:
    """No tasks."""

    async def tasks_of(self, node: str) -> list[pb.TaskAssignment]:
        return []


class Grants:
    """Signs nothing."""

    def to_serve(self, node: str, variant: str) -> str:
        return f"{node} may read {variant}"


@dataclass
class Line:
    """One stream, from the worker's end."""

    call: Call
    task: asyncio.Task[None] = field(init=False)
    up: asyncio.Queue[pb.NodeMessage | None] = field(default_factory=asyncio.Queue)
    down: asyncio.Queue[pb.SchedulerMessage] = field(default_factory=asyncio.Queue)

    async def requests(self) -> AsyncIterator[pb.NodeMessage]:
        while (message := await self.up.get()) is not None:
            yield message

    async def next(self, kind: str) -> pb.SchedulerMessage:
        """The next message, of this kind."""
        message = await asyncio.wait_for(self.down.get(), 5)
        assert message.WhichOneof("message") == kind
        return message

    async def silent(self) -> bool:
        """Whether nothing comes."""
        await asyncio.sleep(0.05)
        return self.down.empty()

    async def close(self) -> None:
        self.up.put_nowait(None)
        await asyncio.wait([self.task], timeout=5)


class Site:
    """The scheduler's end of streams on a real controller."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock(time.time())
        self.world = World(path, self.clock)
        self.key = Ed25519PrivateKey.generate()
        public = self.key.public_key().public_bytes_raw()
        keys = KeySet(lambda: Published({jws.thumbprint(public): jws.encode(public)}))
        keys.refresh()
        self.revocations, self.gateways, self.tasks = Revocations(self.clock), Gateways(), Tasks()
        self.live = LiveStreams(self.revocations, self.clock)
        chains = Ensembles(self.world.records, self.world.controller)
        nothing = SimpleNamespace(tasks_of=lambda node: [])
        desired = DesiredStates(self.world.controller, chains, Idle(), nothing, self.gateways, Grants())  # type: ignore[arg-type]
        loops = (Idle(), self.tasks)
        self.servicer = FleetServicer(self.world.controller, loops, desired, keys, self.revocations, self.clock)  # type: ignore[arg-type]
        self.servicer._loop = self.tasks  # type: ignore[assignment]
        self.lines: list[Line] = []

    def statement(self, node: str, relay: str = "", zone: str = "site-a") -> str:
        place = {"tier": "edge", "zone": zone, "region": "eu", "clearance": "restricted", "relay": relay}
        public = suites.generate(suites.X25519).public_key
        return statements.issue(
            node=node, suite=suites.X25519, public_key=public, attributes=place, key=self.key, now=self.clock.now()
        )

    def open(self, peer: str, statement: str) -> Line:
        """A stream with its registration."""
        call = Call(CONNECT, {}, Peer(peer, "TLSv1.3"), time.monotonic() + 600)
        line = Line(call)
        told = pb.Register(
            sealing_statement=statement,
            capacity=node_pb.Capacity(cpu_milli=2000, memory_bytes=8 << 30),
            runtimes=[node_pb.Runtime(name="litert", version="2", formats=["LITERT"])],
            tls_name="somebody.else.sealane",
            endpoint="10.0.0.9:1",
        )
        line.up.put_nowait(pb.NodeMessage(register=told))

        async def run() -> None:
            call.cancel = asyncio.current_task().cancel  # type: ignore[union-attr]
            self.live.before(call)
            try:
                async for message in self.servicer.Connect(line.requests(), call):
                    line.down.put_nowait(message)
            except asyncio.CancelledError:
                raise call.revoked or AssertionError("cancelled") from None
            finally:
                self.live.after(call, None)

        line.task = asyncio.create_task(run())
        self.lines.append(line)
        return line

    async def opened(self, peer: str, statement: str) -> Line:
        """The same, once it has heard all that a new stream hears."""
        line = self.open(peer, statement)
        for kind in ("welcome", "desired", "ping"):
            await line.next(kind)
        return line

    async def refused(self, peer: str, statement: str) -> SealaneError:
        """Why a stream is not opened."""
        with pytest.raises(SealaneError) as caught:
            await asyncio.wait_for(self.open(peer, statement).task, 5)
        return caught.value

    def evict(self, spiffe_id: str) -> None:
        self.revocations.take(1, [Revoked(Kind.PEER, spiffe_id, number=self.clock.now() // 1)])

    def state(self, node: str) -> str:
        found = self.world.fleet.get(node)
        return "" if found is None else found.state


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    for line in made.lines:
        line.task.cancel()
    await asyncio.gather(*(line.task for line in made.lines), return_exceptions=True)
    made.world.database.close()


async def test_a_relay_carries_the_nodes_whose_statements_name_it(site: Site) -> None:
    lines = [await site.opened(RELAY, site.statement(node, "r1")) for node in ("n1", "n2")]
    assert site.state("n1") == site.state("n2") == READY
    known = site.world.fleet.get("n1")
    assert known is not None and known.relay == "r1"
    # Callers are never pointed at another name than the node's, whatever the relay says.
    assert known.facts.tls_name == "n1.node.sealane"
    await lines[0].close()
    assert (site.state("n1"), site.state("n2")) == (SUSPECT, READY)


async def test_nobody_speaks_for_a_node_that_does_not_name_it(site: Site) -> None:
    for relay in ("", "r2"):
        refusal = await site.refused(RELAY, site.statement("n1", relay))
        assert isinstance(refusal, PermissionDenied) and refusal.reason == "RELAY_NOT_ALLOWED"
    for peer in ("spiffe://sealane/node/n2", "spiffe://sealane/node/r1"):
        assert isinstance(await site.refused(peer, site.statement("n1", "r1")), PermissionDenied)
    assert site.world.fleet.get("n1") is None
    await site.opened("spiffe://sealane/node/n1", site.statement("n1", "r1"))
    assert site.state("n1") == READY, "a node that has a relay may still dial itself"


async def test_a_relay_cannot_alter_what_auth_says(site: Site) -> None:
    honest = site.statement("n1", "r1", "site-b")
    claims = jws.decode(honest.split(".")[1]).replace(b"site-b", b"site-a")
    forged = ".".join((honest.split(".")[0], jws.encode(claims), honest.split(".")[2]))
    assert isinstance(await site.refused(RELAY, forged), Unauthenticated)
    assert isinstance(await site.refused(RELAY, "not a statement"), Unauthenticated)


@pytest.mark.parametrize(("node", "relay"), [("n1", "r2"), ("n2", "r1")])
async def test_a_stream_ends_where_a_heartbeat_brings_a_statement_of_another(site: Site, node: str, relay: str) -> None:
    line = await site.opened(RELAY, site.statement("n1", "r1"))
    line.up.put_nowait(pb.NodeMessage(heartbeat=pb.Heartbeat(sealing_statement=site.statement(node, relay))))
    with pytest.raises(PermissionDenied):
        await asyncio.wait_for(line.task, 5)


async def test_an_evicted_node_is_put_out_of_its_relay_and_is_dead(site: Site) -> None:
    old = site.statement("n1", "r1")
    line, other = await site.opened(RELAY, old), await site.opened(RELAY, site.statement("n2", "r1"))
    site.evict("spiffe://sealane/node/n1")
    with pytest.raises(Unauthenticated, match="evicted"):
        await asyncio.wait_for(line.task, 5)
    assert (site.state("n1"), site.state("n2")) == (DEAD, READY)
    assert not other.task.done()
    assert (await site.refused(RELAY, old)).reason == NODE_EVICTED
    site.clock.advance(2)
    await site.opened(RELAY, site.statement("n1", "r1"))
    assert site.state("n1") == READY, "auth vouches for it again only once it has joined again"


async def test_nodes_of_an_evicted_relay_are_away_and_not_dead(site: Site) -> None:
    line = await site.opened(RELAY, site.statement("n1", "r1"))
    site.evict(RELAY)
    with pytest.raises(Unauthenticated, match="evicted"):
        await asyncio.wait_for(line.task, 5)
    assert site.state("n1") == SUSPECT
    await site.opened("spiffe://sealane/node/n1", site.statement("n1", "r1"))


async def test_a_relay_renews_and_finishes_for_the_nodes_that_it_carries_now(site: Site) -> None:
    line = await site.opened(RELAY, site.statement("n1", "r1"))
    await site.opened("spiffe://sealane/node/n2", site.statement("n2", "r1"))  # dials itself
    await site.opened(OTHER, site.statement("n3", "r2"))

    async def both(node: str, peer: str = RELAY) -> None:
        call, task = Call(CONNECT, {}, Peer(peer, "TLSv1.3"), 0.0), "projects/p/jobs/j/tasks/1"
        await site.servicer.RenewTask(pb.RenewTaskRequest(task=task, attempt=1, node=node), call)
        await site.servicer.FinishTask(pb.FinishTaskRequest(task=task, attempt=1, node=node), call)

    await both("n1")
    await both("", "spiffe://sealane/node/n2")
    await both("n2", "spiffe://sealane/node/n2")
    assert site.tasks.held == ["n1", "n1", "n2", "n2", "n2", "n2"]
    for node in ("n2", "n3", "n4", ""):
        with pytest.raises(PermissionDenied):
            await both(node)
    with pytest.raises(PermissionDenied):
        await both("n1", "spiffe://sealane/node/n2")
    await line.close()
    with pytest.raises(Unavailable):
        await both("n1")
    assert len(site.tasks.held) == 6


async def test_a_stream_is_woken_by_what_its_own_node_is_to_do(site: Site) -> None:
    near = await site.opened(RELAY, site.statement("n1", "r1"))
    far = await site.opened(RELAY, site.statement("n2", "r1", "site-b"))
    await site.world.create(A)
    told = (await near.next("desired")).desired
    assert [item.deployment for item in told.assignments] == [A.name]
    await site.world.create(B)
    site.world.serve()
    await site.world.controller.delete(A.name, "", lambda store: store.drop_deployment("p", "a"))
    while [item.deployment for item in told.assignments] not in ([], [B.name]):
        before, told = told.revision, (await near.next("desired")).desired
        assert told.revision > before
    if told.assignments or await far.silent():
        assert await far.silent(), "the other one is left alone"


async def test_a_new_gateway_wakes_every_stream_and_a_known_one_none(site: Site) -> None:
    lines = [await site.opened(RELAY, site.statement(node, "r1")) for node in ("n1", "n2")]
    for address, heard in (("10.0.0.1:1", True), ("10.0.0.1:1", False), ("10.0.0.2:1", True)):
        if site.gateways.open("g", address):
            site.world.controller.changes.announce()
        for line in lines:
            if heard:
                assert list((await line.next("desired")).desired.gateways) == [address]
            assert await line.silent()


async def test_a_newer_stream_ends_the_older_at_once(site: Site) -> None:
    old = await site.opened(RELAY, site.statement("n1", "r1"))
    await site.opened("spiffe://sealane/node/n1", site.statement("n1", "r1"))
    with pytest.raises(SealaneError, match="newer stream"):
        await asyncio.wait_for(old.task, 5)
    assert site.state("n1") == READY


async def test_what_is_told_again_grows_though_the_cluster_has_not_changed(site: Site) -> None:
    line = await site.opened(RELAY, site.statement("n1", "r1"))
    revisions = []
    for _ in range(2):
        site.world.controller.changes._listeners["n1"]()
        revisions.append((await line.next("desired")).desired.revision)
    assert revisions[0] < revisions[1]


def crowd(clock: ManualClock, count: int) -> tuple[Fleet, list[int]]:
    fleet = Fleet(clock, Patience())
    facts = Facts({"tier": "edge"})
    return fleet, [fleet.connect(f"n{index}", facts, "") for index in range(count)]


def test_heartbeats_are_stretched_with_the_fleet_and_silence_is_judged_by_what_was_told() -> None:
    clock = ManualClock()
    fleet, sessions = crowd(clock, int(HEARTBEATS_PER_SECOND * 20))
    first, last = fleet.get("n0"), fleet.get(f"n{len(sessions) - 1}")
    assert first is not None and last is not None
    assert (first.interval, last.interval) == (5.0, 20.0)
    assert fleet.new_interval("n0") == 20.0 and fleet.new_interval("n0") is None
    clock.advance(12.1 * 4 - 1)
    assert not [state for state in (first, last) if state.state != READY]
    fleet.tick()
    assert first.state == last.state == READY
    assert fleet.get("n100").state == DEAD, "it was told five seconds"  # type: ignore[union-attr]
    clock.advance(1.1)
    assert fleet.tick() and first.state == last.state == SUSPECT
    fleet.heartbeat("n0", None, "")
    assert fleet.tick() and first.state == READY
    clock.advance(120)
    fleet.tick()
    assert last.state == DEAD


def test_a_fleet_that_shrinks_is_heard_more_often_step_by_step() -> None:
    fleet, sessions = crowd(ManualClock(), int(HEARTBEATS_PER_SECOND * 40))
    kept = f"n{len(sessions) - 1}"
    for index, session in enumerate(sessions[:-1]):
        fleet.disconnect(f"n{index}", session)
    # Never less than half at once: who has not heard of it yet is not suspected meanwhile.
    assert [fleet.new_interval(kept) for _ in range(4)] == [20.0, 10.0, 5.0, None]


def test_who_is_carried_is_refused_by_statements_of_before_an_eviction() -> None:
    known = Revocations(ManualClock())
    known.take(1, [Revoked(Kind.PEER, "spiffe://sealane/node/n1", number=100.0)])
    for issued, good in ((99.0, False), (100.0, False), (101.0, True)):
        if good:
            known.check_carried(Carried("n1", issued))
        else:
            with pytest.raises(Unauthenticated):
                known.check_carried(Carried("n1", issued))
    known.check_carried(Carried("n2", 0.0))
