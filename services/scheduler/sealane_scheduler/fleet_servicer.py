"""FleetService: the workers' streams and the ends of their tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from google.protobuf import empty_pb2

from sealane.clock import Clock
from sealane.errors import Aborted, InvalidArgument, NotFound, PermissionDenied
from sealane.names import parse
from sealane.rpc.call import Call
from sealane.rpc.times import duration_of
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.security import statements
from sealane.security.keys import KeySet
from sealane.security.revocations import PEER_EVICTED
from sealane_scheduler import present
from sealane_scheduler.cluster import Copy, Told
from sealane_scheduler.controller import Controller
from sealane_scheduler.desired import DesiredStates
from sealane_scheduler.fleet import HEARTBEAT_SECONDS
from sealane_scheduler.job_loop import JobLoop
from sealane_scheduler.store import JobRow, PlacementRow
from sealane_scheduler.task_loop import TaskLoop
from sealane_scheduler.task_store import AttemptRow

#: Pings whose echo is still waited for.
_PINGS_KEPT = 10


class FleetServicer:
    """FleetService."""

    def __init__(
        self,
        controller: Controller,
        loops: tuple[JobLoop, TaskLoop],
        desired: DesiredStates,
        keys: KeySet,
        clock: Clock,
    ) -> None:
        self._controller = controller
        self._loop, self._task_loop = loops
        self._desired = desired
        self._keys = keys
        self._clock = clock

    async def Connect(self, requests: AsyncIterator[pb.NodeMessage], call: Call) -> AsyncIterator[pb.SchedulerMessage]:
        node = call.peer.node
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "register":
            raise InvalidArgument("the first message of the stream must register the worker", field="message")
        statement = await self._verified(first.register.sealing_statement, node)
        known = present.facts(statement, first.register)
        session = self._controller.fleet.connect(node, known, first.register.sealing_statement)
        pings: dict[int, float] = {}
        reader = asyncio.create_task(self._read(node, session, requests, pings))
        try:
            for report in first.register.serving:
                self._report(node, report)
            self._changed()
            interval = HEARTBEAT_SECONDS[statement.attributes["tier"]]
            yield pb.SchedulerMessage(welcome=pb.Welcome(heartbeat_interval=duration_of(interval)))
            async for message in self._messages(node, reader, interval, pings):
                if not self._controller.fleet.holds(node, session):
                    raise Aborted("a newer stream of this worker took over", reason="SUPERSEDED")
                yield message
        finally:
            reader.cancel()
            evicted = call.revoked is not None and call.revoked.reason == PEER_EVICTED
            if self._controller.fleet.disconnect(node, session, evicted=evicted):
                self._changed()

    async def RenewTask(self, request: pb.RenewTaskRequest, call: Call) -> pb.RenewTaskResponse:
        held = _attempt(request.task, request.attempt, call.peer.node)
        if await self._task_loop.owns(held):
            await self._task_loop.renew(held, request)
        else:
            await self._loop.renew(_job_of(held), request.progress, request.message)
        return pb.RenewTaskResponse(lease=duration_of(self._loop.lease_seconds))

    async def FinishTask(self, request: pb.FinishTaskRequest, call: Call) -> empty_pb2.Empty:
        held = _attempt(request.task, request.attempt, call.peer.node)
        if await self._task_loop.owns(held):
            await self._task_loop.finish(held, request)
        else:
            await self._loop.finish(_job_of(held), request)
        return empty_pb2.Empty()

    async def _verified(self, jws: str, node: str) -> statements.Statement:
        statement = await asyncio.to_thread(statements.verify, jws, self._keys, self._clock.now())
        if statement.node != node:
            raise PermissionDenied("the sealing statement is about another node than the certificate")
        return statement

    async def _read(
        self, node: str, session: int, requests: AsyncIterator[pb.NodeMessage], pings: dict[int, float]
    ) -> None:
        async for message in requests:
            if not self._controller.fleet.holds(node, session):
                return
            if message.HasField("heartbeat"):
                beat, sent = message.heartbeat, pings.pop(message.heartbeat.ping_sequence, None)
                if beat.sealing_statement:
                    await self._verified(beat.sealing_statement, node)
                rtt = None if sent is None else (self._clock.monotonic() - sent) * 1000
                speeds = beat.link.down_bytes_per_second, beat.link.up_bytes_per_second
                self._controller.fleet.heartbeat(node, rtt, beat.sealing_statement, speeds)
                if beat.sealing_statement:
                    self._changed()
            elif message.HasField("report"):
                self._report(node, message.report)

    async def _messages(
        self, node: str, reader: asyncio.Task[None], interval: float, pings: dict[int, float]
    ) -> AsyncIterator[pb.SchedulerMessage]:
        revision, sequence, next_ping = -1, 0, 0.0
        while not reader.done():
            changes, now = self._controller.changes, self._clock.monotonic()
            if changes.revision > revision:
                revision = changes.revision
                yield pb.SchedulerMessage(desired=await self._desired.of(node, revision))
            if now >= next_ping:
                sequence, next_ping = sequence + 1, now + interval
                pings[sequence] = self._clock.monotonic()
                pings.pop(sequence - _PINGS_KEPT, None)
                yield pb.SchedulerMessage(ping=pb.Ping(sequence=sequence))
            waiter = asyncio.create_task(changes.after(revision, max(0.01, next_ping - now)))
            await asyncio.wait({waiter, reader}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiter
        reader.result()

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
        self._controller.changes.announce()
        self._controller.wake()
        self._task_loop.wake()


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
