"""FleetService: the workers' streams and the ends of their tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from google.protobuf import empty_pb2

from sealane.clock import Clock
from sealane.errors import Aborted, InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable
from sealane.names import parse
from sealane.rpc.call import Call, Carried, Peer
from sealane.rpc.times import duration_of
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.security import statements
from sealane.security.keys import KeySet
from sealane.security.revocations import NODE_EVICTED, PEER_EVICTED, Revocations
from sealane_scheduler import present
from sealane_scheduler.changes import NOBODY
from sealane_scheduler.cluster import Copy, Told
from sealane_scheduler.controller import Controller
from sealane_scheduler.desired import DesiredStates
from sealane_scheduler.job_loop import JobLoop
from sealane_scheduler.node_stream import NodeStream
from sealane_scheduler.store import JobRow, PlacementRow
from sealane_scheduler.task_loop import TaskLoop
from sealane_scheduler.task_store import AttemptRow


class FleetServicer:
    """FleetService."""

    def __init__(
        self,
        controller: Controller,
        loops: tuple[JobLoop, TaskLoop],
        desired: DesiredStates,
        keys: KeySet,
        revocations: Revocations,
        clock: Clock,
    ) -> None:
        self._controller = controller
        self._loop, self._task_loop = loops
        self._desired = desired
        self._keys = keys
        self._revocations = revocations
        self._clock = clock

    async def Connect(self, requests: AsyncIterator[pb.NodeMessage], call: Call) -> AsyncIterator[pb.SchedulerMessage]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "register":
            raise InvalidArgument("the first message of the stream must register the worker", field="message")
        node, session = await self._register(first.register, call)
        stream = NodeStream(self._controller.fleet.interval_of(node))
        reader = asyncio.create_task(self._read((node, session), stream, requests, call))
        reader.add_done_callback(lambda _: stream.end())
        self._controller.changes.listen(node, stream.change)
        try:
            for report in first.register.serving:
                self._report(node, report)
            await self._take_up(first.register.serving)
            self._changed()
            del first  # streams are many and live for days
            yield pb.SchedulerMessage(welcome=pb.Welcome(heartbeat_interval=duration_of(stream.interval)))
            while await stream.due():
                if not self._controller.fleet.holds(node, session):
                    raise Aborted("a newer stream of this worker took over", reason="SUPERSEDED")
                yield await self._message(node, stream)
            reader.result()
        finally:
            reader.cancel()
            stream.end()
            self._controller.changes.unlisten(node, stream.change)
            if self._controller.fleet.disconnect(node, session, evicted=_evicted(call)):
                self._changed()

    async def RenewTask(self, request: pb.RenewTaskRequest, call: Call) -> pb.RenewTaskResponse:
        held = _attempt(request.task, request.attempt, self._holder(request.node, call.peer))
        if await self._task_loop.owns(held):
            await self._task_loop.renew(held, request)
        else:
            await self._loop.renew(_job_of(held), request.progress, request.message)
        return pb.RenewTaskResponse(lease=duration_of(self._loop.lease_seconds))

    async def FinishTask(self, request: pb.FinishTaskRequest, call: Call) -> empty_pb2.Empty:
        held = _attempt(request.task, request.attempt, self._holder(request.node, call.peer))
        if await self._task_loop.owns(held):
            await self._task_loop.finish(held, request)
        else:
            await self._loop.finish(_job_of(held), request)
        return empty_pb2.Empty()

    async def _register(self, told: pb.Register, call: Call) -> tuple[str, int]:
        """Take up a worker; its id and the number of its stream."""
        relay = call.peer.relay
        statement = await self._verified(told.sealing_statement, call)
        known = present.facts(statement, told, relayed=bool(relay))
        return statement.node, self._controller.fleet.connect(statement.node, known, told.sealing_statement, relay)

    async def _take_up(self, serving: Iterable[pb.AssignmentReport]) -> None:
        """Place again what lost its place while this worker was away, before it is told what it is to serve.

        It would unload at once what it is not told of, and load the same again a moment later.
        """
        for report in serving:
            item = self._controller.get(report.deployment)
            if item is not None:
                await self._controller.reconcile(item)

    async def _verified(self, jws: str, call: Call) -> statements.Statement:
        statement = await self._statement(jws)
        if not call.peer.relay:
            if statement.node != call.peer.node:
                raise PermissionDenied("the sealing statement is about another node than the certificate")
            return statement
        if statement.attributes["relay"] != call.peer.relay:
            raise _not_allowed(call.peer.relay, statement.node)
        if call.carried is not None and call.carried.node != statement.node:
            raise PermissionDenied("the sealing statement is about another node than the registration")
        call.carried = Carried(statement.node, statement.issued)
        self._revocations.check_carried(call.carried)
        return statement

    async def _statement(self, jws: str) -> statements.Statement:
        """A verified statement. It takes 0.2 ms, so a thread is asked only where the keys have to be fetched."""
        try:
            return statements.verify(jws, self._keys, self._clock.now(), fetch=False)
        except Unauthenticated as refusal:
            if refusal.reason != statements.UNKNOWN_KEY:
                raise
        return await asyncio.to_thread(statements.verify, jws, self._keys, self._clock.now())

    def _holder(self, named: str, peer: Peer) -> str:
        """The node for which a task is renewed or finished: the caller, or one that it, a relay, carries now."""
        if not peer.relay:
            if named not in ("", peer.node):
                raise PermissionDenied("a node renews and finishes its own tasks alone; leave node empty", field="node")
            return peer.node
        state = self._controller.fleet.get(named)
        if state is None or state.facts.attributes.get("relay", peer.relay) != peer.relay:
            raise _not_allowed(peer.relay, named)
        if not state.session:
            raise Unavailable(f"the stream of node {named} is not open; open it and try again", reason="NODE_AWAY")
        if state.relay != peer.relay:
            raise _not_allowed(peer.relay, named)
        return named

    async def _read(
        self, held: tuple[str, int], stream: NodeStream, requests: AsyncIterator[pb.NodeMessage], call: Call
    ) -> None:
        node, session = held
        async for message in requests:
            if not self._controller.fleet.holds(node, session):
                return
            if message.HasField("heartbeat"):
                beat = message.heartbeat
                if beat.sealing_statement:
                    await self._verified(beat.sealing_statement, call)
                rtt = stream.echo(beat.ping_sequence, self._clock.monotonic())
                speeds = beat.link.down_bytes_per_second, beat.link.up_bytes_per_second
                self._controller.fleet.heartbeat(node, rtt, beat.sealing_statement, speeds)
                if beat.sealing_statement and self._controller.copies_on(node):
                    self._controller.changes.announce(NOBODY)  # routes carry it
            elif message.HasField("report"):
                self._report(node, message.report)

    async def _message(self, node: str, stream: NodeStream) -> pb.SchedulerMessage:
        """What is due on a stream."""
        now = self._clock.monotonic()
        if stream.changed:
            revision = stream.tell(self._controller.changes.revision, now)
            return pb.SchedulerMessage(desired=await self._desired.of(node, revision))
        interval = self._controller.fleet.new_interval(node)
        if interval is not None:
            stream.interval = interval
            return pb.SchedulerMessage(welcome=pb.Welcome(heartbeat_interval=duration_of(interval)))
        return pb.SchedulerMessage(ping=pb.Ping(sequence=stream.ping(now)))

    def _report(self, node: str, report: pb.AssignmentReport) -> None:
        if report.state not in deployment_pb.Placement.State.values():
            raise InvalidArgument(f"state {report.state} of a report is unknown", field="report.state")
        state = deployment_pb.Placement.State.Name(report.state).removeprefix("STATE_")
        row = PlacementRow("", "", report.epoch, node, "")
        told = Told(
            memory_bytes=report.memory_bytes,
            resident=report.resident,
            warmed_requests=report.warm_up.requests,
            warmed_batch_sizes=tuple(report.warm_up.batch_sizes),
        )
        copy = Copy(row, state, report.message, report.variant_digest, told)
        self._controller.report(node, report.deployment, copy)

    def _changed(self) -> None:
        """A node came or went: others may be placed elsewhere, and hear of it then."""
        self._controller.changes.announce(NOBODY)
        self._controller.wake()
        self._task_loop.wake()


def _evicted(call: Call) -> bool:
    """Whether a stream ended because its node was evicted; with its relay alone the node is only away."""
    return call.revoked is not None and call.revoked.reason == (NODE_EVICTED if call.peer.relay else PEER_EVICTED)


def _not_allowed(relay: str, node: str) -> PermissionDenied:
    return PermissionDenied(
        f"relay {relay} does not carry node {node or '(unnamed)'}; a join token of the node names its relay",
        reason="RELAY_NOT_ALLOWED",
    )


def _attempt(task: str, attempt: int, node: str) -> AttemptRow:
    """What a worker says it holds: only its keys, node and number count.

    Raises:
        NotFound: a task that is no number.
    """
    project, job, number = parse(task, "projects/*/jobs/*/tasks/*", "task")
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise NotFound(f"{task} does not exist")
    return AttemptRow(project, job, int(number), attempt, node)


def _job_of(held: AttemptRow) -> JobRow:
    """The same of a job that keeps its one task in its own row."""
    return JobRow(held.project, held.job, "RUNNING", b"", 0.0, 0.0, "", attempt=held.attempt, node=held.node)
