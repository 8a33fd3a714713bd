"""The stream to the scheduler: registers, beats, obeys the newest state, comes back after a cut."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from worker_parts import Local, SilentFleet

from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import fleet_service_pb2_grpc
from sealane_worker.agent import Agent, Hooks


class FakeScheduler(SilentFleet):
    """Answers a registration, collects what comes, sends what the test puts in."""

    def __init__(self) -> None:
        self.registered: queue.Queue[pb.Register] = queue.Queue()
        self.beats: queue.Queue[pb.Heartbeat] = queue.Queue()
        self.reports: queue.Queue[pb.AssignmentReport] = queue.Queue()
        self.outgoing: queue.Queue[pb.SchedulerMessage | None] = queue.Queue()

    def Connect(
        self, request_iterator: Iterator[pb.NodeMessage], context: grpc.ServicerContext
    ) -> Iterator[pb.SchedulerMessage]:
        """One worker's stream."""
        threading.Thread(target=self._collect, args=(request_iterator,), daemon=True).start()
        welcome = pb.Welcome()
        welcome.heartbeat_interval.FromMilliseconds(50)
        yield pb.SchedulerMessage(welcome=welcome)
        while (message := self.outgoing.get()) is not None:
            yield message

    def _collect(self, messages: Iterator[pb.NodeMessage]) -> None:
        queues = {"register": self.registered, "heartbeat": self.beats, "report": self.reports}
        try:
            for message in messages:
                kind = message.WhichOneof("message")
                assert kind is not None
                queues[kind].put(getattr(message, kind))  # type: ignore[attr-defined]
        except grpc.RpcError:
            return


@pytest.fixture
def scheduler(local: Local) -> Iterator[FakeScheduler]:
    """A scheduler at ``local``'s only address."""
    fake = FakeScheduler()
    yield fake
    fake.outgoing.put(None)


def _agent(local: Local, scheduler: FakeScheduler, desired: list[int]) -> Agent:
    address = local.serve(fleet_service_pb2_grpc.add_FleetServiceServicer_to_server, scheduler)
    hooks = Hooks(
        ready=lambda seconds: True,
        register=lambda: pb.Register(endpoint="127.0.0.1:7", sealing_statement="jws"),
        serving=lambda: [pb.AssignmentReport(deployment="loaded", epoch=1)],
        heartbeat=lambda: pb.Heartbeat(in_flight=3, sealing_statement="jws"),
        desired=lambda state: desired.append(state.revision),
    )
    agent = Agent(lambda: local.dial(address), hooks)
    agent.start()
    return agent


def test_registers_beats_answers_pings_and_reports(local: Local, scheduler: FakeScheduler) -> None:
    agent = _agent(local, scheduler, [])
    register = scheduler.registered.get(timeout=5)
    assert register.endpoint == "127.0.0.1:7"
    assert [item.deployment for item in register.serving] == ["loaded"]
    assert scheduler.reports.get(timeout=5).deployment == "loaded"
    first, second = scheduler.beats.get(timeout=5), scheduler.beats.get(timeout=5)
    assert first.in_flight == 3
    assert (first.sealing_statement, second.sealing_statement) == ("jws", "")
    scheduler.outgoing.put(pb.SchedulerMessage(ping=pb.Ping(sequence=9)))
    end = time.monotonic() + 5
    while scheduler.beats.get(timeout=5).ping_sequence != 9:
        assert time.monotonic() < end
    agent.report(pb.AssignmentReport(deployment="d", epoch=2))
    assert scheduler.reports.get(timeout=5).epoch == 2
    agent.stop()


def test_an_older_state_of_the_same_stream_is_ignored(local: Local, scheduler: FakeScheduler) -> None:
    desired: list[int] = []
    agent = _agent(local, scheduler, desired)
    for revision in (4, 3, 5):
        scheduler.outgoing.put(pb.SchedulerMessage(desired=pb.DesiredState(revision=revision)))
    end = time.monotonic() + 5
    while len(desired) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert desired == [4, 5]
    agent.stop()


def test_registers_again_after_a_cut(local: Local, scheduler: FakeScheduler) -> None:
    agent = _agent(local, scheduler, [])
    scheduler.registered.get(timeout=5)
    scheduler.outgoing.put(None)
    scheduler.registered.get(timeout=5)
    agent.stop()
    assert not agent.connected


def test_a_new_interval_holds_at_once_and_an_answer_takes_the_place_of_a_heartbeat(
    local: Local, scheduler: FakeScheduler
) -> None:
    agent = _agent(local, scheduler, [])
    scheduler.beats.get(timeout=5)
    slow = pb.Welcome()
    slow.heartbeat_interval.FromSeconds(3600)
    scheduler.outgoing.put(pb.SchedulerMessage(welcome=slow))
    with pytest.raises(queue.Empty):
        while True:
            scheduler.beats.get(timeout=1.0)
    for sequence in (1, 2):
        scheduler.outgoing.put(pb.SchedulerMessage(ping=pb.Ping(sequence=sequence)))
        assert scheduler.beats.get(timeout=5).ping_sequence == sequence
    fast = pb.Welcome()
    fast.heartbeat_interval.FromMilliseconds(50)
    scheduler.outgoing.put(pb.SchedulerMessage(welcome=fast))
    for _ in range(3):
        scheduler.beats.get(timeout=5)
    agent.stop()
