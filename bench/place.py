"""SCHED-1: durable placements a second, over gRPC with TLS and a token, on a fleet of simulated workers.

``python -m bench.place [--workers N] [--seconds S]``. The scheduler, auth, the registry and the gateway are real
processes; the scheduler's workers are simulated (:mod:`bench.place_scheduler`). Every answer says where the copies go,
after the commit; at the end the scheduler is killed with -9, and every placement that was acknowledged has to be there.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.place_scheduler import WORKERS

from sealane.client import Client, connect
from sealane.client.demand import DemandFields, demand
from sealane.scheduler.v1 import placement_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2_grpc
from sealane_local import plan
from sealane_local.child import Child
from sealane_local.stack import LocalStack

LIGHT = Path(__file__).parents[1] / "examples/digits/light"
ROOT = str(Path(__file__).parents[1])
PARENT, VERSION = "projects/default", "projects/default/models/digits/versions/1"
OF_MANY, BOUND_MANY, BOUND_ONE = 64, 2000.0, 800.0
#: As many deployments wait for their place at once as in one call of many.
CALLERS = 64
#: What deployments demand: eight kinds, which differ in what filters and terms look at.
KINDS: Sequence[DemandFields] = (
    {"tier": "cloud", "latency_ms": 80.0},
    {"tier": "edge", "latency_ms": 60.0},
    {"objective": "cost", "max_price_per_hour": 2.0},
    {"objective": "latency", "origin": "zone-03"},
    {"data_class": "restricted", "residency": ["zone-01", "zone-02", "zone-05"]},
    {"objective": "green", "rate": 20.0},
    {"objective": "accuracy", "cpu_milli": 250},
    {"memory_bytes": 256 << 20, "data_class": "public", "request_bytes": 150_000},
)


class SimulatedStack(LocalStack):
    """A stack whose scheduler has simulated workers."""

    def __init__(self, options: plan.Options, workers: int) -> None:
        super().__init__(options)
        self._workers = workers

    def _child(self, name: str, module: str, arguments: tuple[str, ...], environment: dict[str, str]) -> Child:
        if name == "scheduler":
            module, environment = (
                "bench.place_scheduler",
                {**environment, WORKERS: str(self._workers), "PYTHONPATH": ROOT},
            )
        return super()._child(name, module, arguments, environment)


@dataclass(slots=True)
class Placing:
    """Callers that place as fast as they are answered."""

    client: Client
    size: int
    kinds: Callable[[int], DemandFields]
    numbers: itertools.count[int]
    placed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    refused: int = 0

    def run(self, until: float) -> None:
        """Call until then."""
        stub = placement_service_pb2_grpc.PlacementServiceStub(self.client.inference._session.channel("scheduler"))
        while time.monotonic() < until:
            numbers = [next(self.numbers) for _ in range(self.size)]
            request = pb.PlaceRequest(
                parent=PARENT,
                items=[
                    pb.PlaceRequest.Item(
                        deployment_id=f"d{number:07}", model_version=VERSION, demand=demand(self.kinds(place))
                    )
                    for place, number in enumerate(numbers)
                ],
                request_id=str(uuid.uuid4()),
            )
            began = time.monotonic()
            answer = stub.Place(request, timeout=30)
            self.seconds.append(time.monotonic() - began)
            self.placed += [item.deployment for item in answer.placed if item.copies]
            self.refused += sum(not item.copies for item in answer.placed)


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Site:
    """What is measured."""

    stack: SimulatedStack
    client: Client
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def measure(
        self, callers: int, size: int, kinds: Callable[[int], DemandFields], seconds: float
    ) -> tuple[float, list[str]]:
        """Placements a second of some callers, each with calls of a size; and the names of what was placed."""
        pid = self.stack.child("scheduler").pid
        assert pid is not None
        placing = [Placing(self.client, size, kinds, self.numbers) for _ in range(callers)]
        began, used = time.monotonic(), processor(pid)
        threads = [threading.Thread(target=item.run, args=(began + seconds,)) for item in placing]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took, used = time.monotonic() - began, processor(pid) - used
        placed = [name for item in placing for name in item.placed]
        times = sorted(second for item in placing for second in item.seconds)
        refused = sum(item.refused for item in placing)
        sys.stdout.write(
            f"  {callers} callers, {size} a call: {len(placed) / took:.0f} a second, "
            f"{used / len(placed) * 1e6:.0f} us of "
            f"the scheduler's processor each; a call p50 {times[len(times) // 2] * 1000:.1f} ms "
            f"p99 {times[int(len(times) * 0.99)] * 1000:.1f} ms; {refused} fit nowhere\n"
        )
        sys.stdout.flush()
        return len(placed) / took, placed


def kept(client: Client, wanted: Sequence[str]) -> int:
    """How many of these deployments are not there, or have no copy."""
    there = {item.name for item in client.deployments.list() if item.placements}
    return len(set(wanted) - there)


def main() -> int:
    """Command line; exits with 1 where it falls short."""
    parser = argparse.ArgumentParser(prog="python -m bench.place", description=__doc__)
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    wanted = parser.parse_args()
    turn = itertools.count()

    def few(place: int) -> DemandFields:
        return KINDS[place * len(KINDS) // OF_MANY % len(KINDS)]

    def other(place: int) -> DemandFields:
        return KINDS[next(turn) % len(KINDS)]

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "stack"
        with SimulatedStack(plan.Options(data, workers=()), wanted.workers) as stack, connect(data) as client:
            client.models.push(LIGHT / "litert-int8.tflite", "digits", variant="litert-int8", alias="latest")
            site = Site(stack, client)
            site.measure(2, OF_MANY, few, 1.0)  # the first calls import and compile
            many_rate, placed = site.measure(3, OF_MANY, few, wanted.seconds) if not os.environ.get("ONE") else (0, [])
            one_rate, more = site.measure(CALLERS, 1, other, wanted.seconds)
            stack.child("scheduler").crash()
            stack.wait_for_lanes(60)
            lost = kept(client, [*placed, *more])
    sys.stdout.write(
        f"figure: {wanted.workers:,} workers: {many_rate:,.0f} placements a second in calls of {OF_MANY}, "
        f"{one_rate:,.0f} one a call; {lost} of {len(placed) + len(more):,} lost over a kill -9\n"
    )
    return 0 if many_rate >= BOUND_MANY and one_rate >= BOUND_ONE and not lost else 1


if __name__ == "__main__":
    sys.exit(main())
