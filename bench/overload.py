"""PROTO-5: three times the load that a model can carry. `python -m bench.overload [worker] [gateway]`.

The model takes 20 ms a call (`bench/slow`). Calls begin by the clock, whatever becomes of those before (open loop),
each with a deadline of 250 ms; latency counts from when a call was to begin. Goodput is answers within the deadline;
its peak is what four patient callers get from the same way in the same run. `LONG=1` runs for 60 s, else it is 10 s.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
from bench import lane_site

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall
from sealane.protocols.call import Target as Model
from sealane.rpc import order
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.fairness import FairShare
from sealane.rpc.health import Health
from sealane.rpc.middleware import Chain
from sealane_worker import front
from sealane_worker.engine import Assignment, Engine
from sealane_worker.model.queueing import Batching
from sealane_worker.serving import Serving
from sealane_worker.spec import ModelSpec
from sealane_worker.spec import Serving as Wishes
from sealane_worker.streams import Streams

SLOW = Path(__file__).resolve().parent / "slow"
SECONDS = 60.0 if os.environ.get("LONG") == "1" else 10.0
PEAK_SECONDS, PEAK_CALLERS, OVERLOAD = 5.0, 4, 3.0
DEADLINE = 0.25
GOODPUT_BOUND, REFUSAL_BOUND_MS = 0.90, 20.0


@dataclass(slots=True)
class Outcomes:
    """What became of the calls of one run."""

    good: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    refusals_ms: list[float] = field(default_factory=list)

    def refusal_p99(self) -> float:
        """Of the refusals for overload, in milliseconds."""
        return float(np.percentile(self.refusals_ms, 99)) if self.refusals_ms else 0.0


def serve_worker(folder: Path, gateways: list[str]) -> None:
    """A worker with the slow model, as the suite builds it."""
    telemetry_ = telemetry.configure(telemetry.TelemetryConfig("worker", sample_ratio=0.0))
    engine = Engine()
    path = folder / "model" / "model.slow"
    spec = ModelSpec("slow", path, serving=Wishes(batching=Batching(max_batch_size=1)))
    model = "projects/p/models/m"
    engine.load(Assignment(lane_site.DEPLOYMENT, model, 1, "slow", "sha256:" + "00" * 32, 1, spec))
    guard = lane_site.member(folder, "w").guard(SystemClock(), quota=[FairShare(lane_site.MAX_IN_FLIGHT)])
    middleware = order.standard(
        telemetry_=telemetry_, guard=guard, max_in_flight=lane_site.MAX_IN_FLIGHT, every_call=False
    )
    service = openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    servicer = front.OpenInferenceServicer(Serving(engine, telemetry_, "w"), Health(()), Streams(None))
    served = Served(servicer, service, "inference.GRPCInferenceService", frozenset({"ModelStreamInfer"}))
    try:
        lane_site.serve_worker(folder, "w", gateways, Dispatcher([served], Chain(middleware)), engine)
    finally:
        engine.close()


class Caller:
    """Calls one way in."""

    def __init__(self, folder: Path, address: str, name: str) -> None:
        credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
        options = [("grpc.ssl_target_name_override", name)]
        self._channel = grpc.aio.secure_channel(address, credentials, options)
        self._infer = self._channel.unary_unary(lane_site.INFER)
        self._metadata = (("authorization", f"Bearer {lane_site.token()}"),)

    async def call(self, intended: float, outcomes: Outcomes, deadline: float = DEADLINE) -> None:
        """One call that was to begin at `intended`."""
        until = intended + deadline
        inputs = {"deadline": np.array([[until]])}
        body = openinference.encode_request(InferenceCall(Model("d"), inputs)).SerializeToString()
        try:
            await self._infer(body, timeout=max(until - time.monotonic(), 0.0), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            outcomes.codes[error.code().name] += 1
            if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                outcomes.refusals_ms.append((time.monotonic() - intended) * 1000)
                assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata() or ())
        else:
            outcomes.codes["OK"] += 1
            outcomes.good += time.monotonic() <= until

    async def counts(self) -> tuple[int, int]:
        """Calls that the model has begun, and those of them that it began after their deadline."""
        request = InferenceCall(Model("d"), {"deadline": np.zeros((1, 1))})
        answer = await self._infer(
            openinference.encode_request(request).SerializeToString(), timeout=5.0, metadata=self._metadata
        )
        counts = openinference.decode_response(openinference_pb2.ModelInferResponse.FromString(answer))["counts"]
        return int(counts[0, 0]), int(counts[0, 1])

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()


async def peak(caller: Caller) -> float:
    """Answers a second that patient callers get."""
    outcomes, end = Outcomes(), time.monotonic() + PEAK_SECONDS

    async def ask() -> None:
        while time.monotonic() < end:
            await caller.call(time.monotonic(), outcomes, 5.0)

    await asyncio.gather(*(ask() for _ in range(PEAK_CALLERS)))
    return outcomes.good / PEAK_SECONDS


async def overload(caller: Caller, rate: float) -> Outcomes:
    """Calls at `rate` a second, begun by the clock."""
    outcomes, begun = Outcomes(), time.monotonic()
    async with asyncio.TaskGroup() as calls:
        for index in range(int(rate * SECONDS)):
            intended = begun + index / rate
            await asyncio.sleep(max(intended - time.monotonic(), 0.0))
            calls.create_task(caller.call(intended, outcomes))
    return outcomes


async def measure(caller: Caller, way: str) -> bool:
    """One way in; prints its figures."""
    try:
        most = await peak(caller)
        before = await caller.counts()
        outcomes = await overload(caller, OVERLOAD * most)
        begun, late = (after - earlier for after, earlier in zip(await caller.counts(), before, strict=True))
    finally:
        await caller.close()
    share = outcomes.good / SECONDS / most
    print(f"{way}: peak {most:.1f}/s, at {OVERLOAD:g} x that {dict(outcomes.codes)}; begun {begun}")
    print(
        f"figure: {way}: goodput {share:.0%} of peak, {late} begun after their deadline, "
        f"refusals p99 {outcomes.refusal_p99():.1f} ms"
    )
    return share >= GOODPUT_BOUND and not late and outcomes.refusal_p99() <= REFUSAL_BOUND_MS


def main(arguments: list[str]) -> int:
    """Measure what is named; exit code 1 where a bound is not kept."""
    if arguments[:1] == ["serve"]:
        serve_worker(Path(arguments[1]), arguments[2:])
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SLOW), os.environ.get("PYTHONPATH", ""))))
    with tempfile.TemporaryDirectory() as name, lane_site.site(Path(name), "w") as site:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "model" / "model.slow").write_text("")
        gateway = site.start("gateway", "bench.lane_site", "gateway", name, "w")
        worker = site.start("worker", "bench.overload", "serve", name, f"127.0.0.1:{gateway['mesh']}")
        ways: dict[str, Callable[[], Caller]] = {
            "worker": lambda: Caller(folder, f"127.0.0.1:{worker['client']}", "w.node.sealane"),
            "gateway": lambda: Caller(folder, f"127.0.0.1:{gateway['client']}", lane_site.GATEWAY_NAME),
        }

        async def one(way: str) -> bool:
            return await measure(ways[way](), way)

        held = [asyncio.run(one(way)) for way in arguments or ways]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
