"""PROTO-4: what the gateway costs beside a bare `grpc.aio` unary echo of the same run. `python -m bench.gateway`.

Both listen with TLS 1.3 and the options of the suite's client port, both get the same body from the same C++ client,
both carry a token (which the echo ignores). Behind the gateway stands a real lane to a worker that answers with the
request; it is a process of its own, so the gateway's processor time is the gateway's alone. The time that the gateway
adds is that of a call through it less that of a call straight to the worker's own listener.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import grpc
from bench import lane_site
from bench.peers import processes
from bench.peers.load import Client, Endpoint, Lap

from sealane.compat.openinference.v2 import openinference_pb2 as oip

CACHE = Path(__file__).resolve().parent.parent / "var" / "peers"
ROUNDS, SECONDS = 5, 3.0
CALLERS = 32
CPU_BOUND, ADDED_BOUND = 2.0, 2.5


def request() -> bytes:
    """A small request: one row of 64 numbers."""
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=[1, 64])
    return oip.ModelInferRequest(model_name="d", inputs=[tensor], raw_input_contents=[bytes(256)]).SerializeToString()


def main(arguments: list[str]) -> int:
    """Measure; exit code 1 where a bound is not kept."""
    rounds = int(arguments[0]) if arguments else ROUNDS
    client = Client(CACHE)
    client.prepare()
    with tempfile.TemporaryDirectory() as name, lane_site.site(Path(name), "w") as site:
        own = ("bench.lane_site",)
        echo = site.start("echo", *own, "echo", name)
        gateway = site.start("gateway", *own, "gateway", name, "w")
        worker = site.start("worker", *own, "worker", name, "w", f"127.0.0.1:{gateway['mesh']}")
        body = request()
        ends = {
            "echo": site.endpoint(echo["client"], lane_site.GATEWAY_NAME, body),
            "gateway": site.endpoint(gateway["client"], lane_site.GATEWAY_NAME, body),
            "direct": site.endpoint(worker["client"], "w.node.sealane", body),
        }
        for end in ends.values():
            _wait(end, body)
        pids = {kind: site.processes[kind].pid for kind in ("echo", "gateway")}
        for kind, pid in pids.items():
            _processor_time(client, ends[kind], pid, 1.0)
        # Rounds are compared one by one: what else the machine does meets all alike.
        cpu = [
            {kind: _processor_time(client, ends[kind], pid, SECONDS) for kind, pid in pids.items()}
            for _ in range(rounds)
        ]
        p50 = [{kind: _run(client, end, 1, SECONDS / 2).p50_us for kind, end in ends.items()} for _ in range(rounds)]
    return _tell(cpu, p50)


def _tell(cpu: list[dict[str, float]], p50: list[dict[str, float]]) -> int:
    ratio = statistics.median(lap["gateway"] / lap["echo"] for lap in cpu)
    added = statistics.median((lap["gateway"] - lap["direct"]) / lap["echo"] for lap in p50)
    print(f"server CPU a call at {CALLERS} callers: {_medians(cpu)}")
    print(f"p50 with one caller: {_medians(p50)}")
    print(f"figure: server CPU {ratio:.2f} x a bare grpc.aio echo, {CALLERS} callers")
    print(f"figure: adds {added:.2f} x the echo's p50, one caller")
    return 0 if ratio <= CPU_BOUND and added <= ADDED_BOUND else 1


def _medians(laps: list[dict[str, float]]) -> str:
    return ", ".join(f"{kind} {statistics.median(lap[kind] for lap in laps):.0f} us" for kind in laps[0])


def _processor_time(client: Client, end: Endpoint, pid: int, seconds: float) -> float:
    before = processes.cpu_us([pid])
    lap = _run(client, end, CALLERS, seconds)
    return (processes.cpu_us([pid]) - before) / lap.ok


def _run(client: Client, end: Endpoint, callers: int, seconds: float) -> Lap:
    lap = client.run(end, callers, seconds)
    if lap.errors or not lap.ok:
        raise SystemExit(f"{end.address} failed: {lap.error}")
    return lap


def _wait(end: Endpoint, body: bytes) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            assert end.ask(5.0) == body
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
