"""The worker's one stream to the scheduler. The worker dials; it is never dialled."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from sealane.errors import SealaneError
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1.fleet_service_pb2_grpc import FleetServiceStub

log = logging.getLogger("sealane.worker.agent")

FIRST_BACKOFF = 0.2
LAST_BACKOFF = 5.0
HEARTBEAT_SECONDS = 1.0
#: How long to wait for auth to vouch for this worker before looking again.
STATEMENT_SECONDS = 1.0

#: Makes a channel to the scheduler's mesh port, with the certificate of this moment.
Dial = Callable[[], grpc.Channel]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the agent asks and tells the rest of the worker.

    Attributes:
        ready: waits up to the given seconds for the sealing statement; whether it is there.
        register: makes the first message of a stream.
        serving: how everything that is loaded stands.
        heartbeat: makes a sign of life.
        desired: takes the desired state; must not block.
    """

    ready: Callable[[float], bool]
    register: Callable[[], pb.Register]
    serving: Callable[[], list[pb.AssignmentReport]]
    heartbeat: Callable[[], pb.Heartbeat]
    desired: Callable[[pb.DesiredState], None]


class Agent:
    """Keeps the stream open, in a thread of its own.

    Args:
        dial: makes a channel.
        hooks: what it asks and tells the rest of the worker.
        addresses: how many schedulers there are to dial, of which one leads.
    """

    def __init__(self, dial: Dial, hooks: Hooks, addresses: int = 1) -> None:
        self._dial = dial
        self._addresses = addresses
        self._hooks = hooks
        self._session: _Session | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    def report(self, report: pb.AssignmentReport) -> None:
        """Tell how an assignment stands; while there is no stream the next registration tells it."""
        session = self._session
        if session is not None:
            session.send(pb.NodeMessage(report=report))

    @property
    def connected(self) -> bool:
        """Whether the scheduler has welcomed this worker on the present stream."""
        session = self._session
        return session is not None and session.welcomed

    def stop(self) -> None:
        """Close the stream, which returns what this worker holds."""
        self._stop.set()
        session = self._session
        if session is not None:
            session.close()
        if self._thread.is_alive():
            self._thread.join(timeout=3.0)

    def _run(self) -> None:
        """Supervise: one session after another."""
        backoff = FIRST_BACKOFF
        while not self._stop.is_set():
            if not self._hooks.ready(STATEMENT_SECONDS):
                continue
            session = _Session(self._hooks)
            try:
                self._introduce(session)
                with self._dial() as channel:
                    session.run(FleetServiceStub(channel))
            except SealaneError as error:
                if not self._stop.is_set():
                    log.warning("no scheduler, dialling again", extra={"reason": error.reason})
            except Exception:  # supervisor: the stream is opened again whatever ended it
                log.exception("the stream to the scheduler failed, dialling again")
            self._session = None
            backoff = FIRST_BACKOFF if session.welcomed else min(backoff * 2, LAST_BACKOFF)
            # Full jitter: after an outage a fleet must not come back in one instant.
            # Of several schedulers one leads; which one is found out as fast as a single one is found.
            self._stop.wait(random.uniform(0, backoff / self._addresses))

    def _introduce(self, session: _Session) -> None:
        """Queue the registration first, then let reports through.

        What was loaded in between is in neither, so everything is reported again behind it.
        """
        register = self._hooks.register()
        register.serving.extend(self._hooks.serving())
        session.send(pb.NodeMessage(register=register))
        self._session = session
        for report in self._hooks.serving():
            session.send(pb.NodeMessage(report=report))


class _Session:
    """One stream."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._outgoing: queue.SimpleQueue[pb.NodeMessage | None] = queue.SimpleQueue()
        self._interval = HEARTBEAT_SECONDS
        self._sequence = 0
        self._statement = ""
        self._revision = -1
        self._cancel: Callable[[], object] = lambda: None
        self.welcomed = False

    def send(self, message: pb.NodeMessage) -> None:
        """Send soon."""
        self._outgoing.put(message)

    def close(self) -> None:
        """End from this side."""
        self._outgoing.put(None)
        self._cancel()

    def run(self, stub: FleetServiceStub) -> None:
        """Send what is queued, registration first, and answer until the stream ends.

        Raises:
            SealaneError: the stream broke.
        """
        stream = stub.Connect(self._messages())
        self._cancel = stream.cancel
        try:
            for message in stream:
                self._take(message)
        finally:
            self._outgoing.put(None)

    def _take(self, message: pb.SchedulerMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "welcome":
            self._interval = message.welcome.heartbeat_interval.ToNanoseconds() / 1e9 or HEARTBEAT_SECONDS
            if self.welcomed:
                self.send(self._heartbeat())  # who waits for the next one waits by the former interval
            self.welcomed = True
        elif kind == "ping":
            self._sequence = message.ping.sequence
            self.send(self._heartbeat())
        elif kind == "desired" and message.desired.revision > self._revision:
            self._revision = message.desired.revision
            self._hooks.desired(message.desired)

    def _messages(self) -> Iterator[pb.NodeMessage]:
        """What goes up: what is sent, and a heartbeat once there was none for an interval; answers to pings count."""
        due = time.monotonic() + self._interval
        while True:
            try:
                message = self._outgoing.get(timeout=max(due - time.monotonic(), 0.0))
            except queue.Empty:
                message = self._heartbeat()
            if message is None:
                return
            if message.HasField("heartbeat"):
                due = time.monotonic() + self._interval * random.uniform(0.8, 1.0)
            yield message

    def _heartbeat(self) -> pb.NodeMessage:
        beat = self._hooks.heartbeat()
        beat.ping_sequence = self._sequence
        if beat.sealing_statement == self._statement:
            beat.sealing_statement = ""  # it has not changed; 2.7 kB and a signature check are saved
        else:
            self._statement = beat.sealing_statement
        return pb.NodeMessage(heartbeat=beat)
