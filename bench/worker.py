"""What the worker promises of speed and memory: `python -m bench.worker overhead|mobilenet|memory|restart`.

`--front python` measures the first two with the front in Python.

Ratios of one run, servers interleaved, medians; one C++ client for both sides (`bench/peers/grpcload.cc`).
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bench.peers import processes
from bench.peers.load import Client
from bench.peers.models import MODELS, build
from bench.peers.rounds import in_process
from bench.peers.sealane import Sealane
from bench.peers.servers import Floor, Server, Site

from sealane.client import connect
from sealane.errors import SealaneError
from sealane_local.plan import CLOUD, EDGE, Options
from sealane_local.stack import LocalStack

ROUNDS, SECONDS = 5, 2.0
CACHE = Path(__file__).resolve().parent.parent / "var" / "peers"
LIGHT = Path(__file__).resolve().parent.parent / "examples" / "digits" / "light"


@contextmanager
def started(server: Server) -> Iterator[Server]:
    """A server of the bench, ended afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(CACHE / "environments", build(CACHE / "models"), Path(folder))
        server.start(site)
        try:
            yield server
        finally:
            server.stop()


def overhead(front: str) -> bool:
    """WORK-2: everything on, one caller, against the floor of the same run."""
    client = Client(CACHE)
    client.prepare()
    ratios: dict[str, tuple[float, float]] = {}
    with started(Floor()) as floor, started(Sealane(front=front)) as ours:
        for name in ("mean-1k", "mean-150k"):
            laps: dict[str, list[tuple[float, float]]] = {"floor": [], "ours": []}
            client.run(ours.endpoint(MODELS[name]), 1, SECONDS)  # the first calls find everything cold
            for _ in range(ROUNDS):
                for label, server in (("floor", floor), ("ours", ours)):
                    before = processes.cpu_us(server.pids())
                    lap = client.run(server.endpoint(MODELS[name]), 1, SECONDS)
                    assert lap.ok, lap.error
                    assert not lap.errors, lap.error
                    laps[label].append((lap.p50_us, (processes.cpu_us(server.pids()) - before) / lap.ok))
            middle = {
                label: [statistics.median(column) for column in zip(*rows, strict=True)] for label, rows in laps.items()
            }
            ratios[name] = (middle["ours"][0] / middle["floor"][0], middle["ours"][1] / middle["floor"][1])
            print(
                f"{name:10} floor p50 {middle['floor'][0]:5.0f} us, cpu {middle['floor'][1]:4.0f} us;  "
                f"worker p50 {middle['ours'][0]:5.0f} us, cpu {middle['ours'][1]:4.0f} us"
            )
    small, large = ratios["mean-1k"], ratios["mean-150k"]
    print(
        f"figure: p50 {small[0]:.2f} x the floor at 1 KB, {large[0]:.2f} x at 150 KB; "
        f"server CPU {small[1]:.2f} x for a small call"
    )
    return small[0] <= 1.5 and large[0] <= 1.5 and small[1] <= 1.8


def mobilenet(front: str) -> bool:
    """WORK-3: MobileNetV2 int8 through the worker against the bare interpreter on the same cores.

    The cores are all but one, which the client and the suite's other services have: what it costs to ask is not the
    worker's. Then once more with all of them on the same cores, for who runs everything on one machine.
    """
    client = Client(CACHE)
    client.prepare()
    everything = sorted(os.sched_getaffinity(0))
    assert len(everything) > 1, "needs a core for the client"
    apart = _share(client, front, everything[:-1], everything[-1:])
    together = _share(client, front, everything, everything)
    print(f"figure: {apart[0]}; with the client on the same cores too {together[0]}")
    return apart[1] >= 0.85


def _share(client: Client, front: str, cores: list[int], clients: list[int]) -> tuple[str, float]:
    """Throughput of the worker by that of the interpreter, both on `cores`; told, and as a number."""
    model = MODELS["mobilenetv2-int8"]
    bare, ours = [], []
    with pinned(cores), started(Sealane(front=front)) as server:
        site = Site(CACHE / "environments", CACHE / "models", CACHE)
        client.run(server.endpoint(model), 2 * len(cores), SECONDS)  # the first calls find everything cold
        for pid in {*processes.tree([os.getpid()])} - {os.getpid(), *processes.tree(server.pids())}:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), clients)
        for _ in range(ROUNDS):
            bare.append(in_process(site, model, len(cores), SECONDS).rps)
            with pinned(clients):
                lap = client.run(server.endpoint(model), 2 * len(cores), SECONDS)
            assert lap.ok, lap.error
            ours.append(lap.rps)
    rate, most = statistics.median(ours), statistics.median(bare)
    told = f"{rate / most:.0%} of the bare interpreter ({rate:.0f} of {most:.0f} a second"
    return f"{told}, {len(cores)} of {os.cpu_count()} cores)", rate / most


@contextmanager
def pinned(cores: list[int]) -> Iterator[None]:
    """Have what is started here run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def memory() -> bool:
    """WORK-5: PSS of a worker without a model, and of a LiteRT model process over its weights."""
    with tempfile.TemporaryDirectory() as folder, LocalStack(Options(Path(folder), workers=(CLOUD,))) as stack:
        pid = stack.child(CLOUD.node).pid
        assert pid is not None
        time.sleep(2.0)
        front = processes.memory([pid]).pss
        file = LIGHT / "litert-float.tflite"
        with connect(stack.options.data) as client:
            client.deployments.create("digits", client.models.push(file, "digits").name)
            client.deployments.wait("digits")
            for _ in range(200):
                client.inference.predict("digits", np.zeros((1, 8, 8, 1), np.float32), via="direct")
        (child,) = [each for each in processes.tree([pid]) if each != pid]
        model = processes.memory([child]).pss - file.stat().st_size / (1 << 20)
    print(f"figure: front and agent {front:.0f} MB PSS; a LiteRT model process {model:.0f} MB over its weights")
    return front <= 90 and model <= 75


def restart() -> bool:
    """WORK-7: kill -9 of a model process under load: who notices, and for how long."""
    failures: list[str] = []
    times: list[tuple[float, float]] = []
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder, LocalStack(Options(Path(folder), workers=(CLOUD, EDGE))) as stack:
        pid = stack.child(CLOUD.node).pid
        assert pid is not None
        with connect(stack.options.data) as client:
            version = client.models.push(LIGHT / "litert-int8.tflite", "digits", variant="litert-int8")
            client.deployments.create("digits", version.name, tier="cloud")
            client.deployments.wait("digits")
            image = np.zeros((1, 8, 8, 1), np.float32)

            def call() -> None:
                while not stop.is_set():
                    began = time.monotonic()
                    try:
                        client.inference.predict("digits", image, via="direct", timeout=5.0)
                        times.append((began, time.monotonic()))
                    except SealaneError as error:
                        failures.append(f"{error.kind} {error.reason} {error.message[:90]}")

            callers = [threading.Thread(target=call) for _ in range(4)]
            for caller in callers:
                caller.start()
            gaps = []
            for _ in range(3):
                time.sleep(1.5)
                (child,) = [each for each in processes.tree([pid]) if each != pid]
                killed = time.monotonic()
                os.kill(child, signal.SIGKILL)
                time.sleep(2.0)
                gaps.append(min(ended for began, ended in list(times) if began > killed) - killed)
                if len(gaps) == 2:
                    break  # three deaths within five minutes are a quarantine
            stop.set()
            for caller in callers:
                caller.join()
    print("\n".join(sorted(set(failures))))
    print(
        f"figure: {len(failures)} of {len(times) + len(failures)} calls failed through the SDK, "
        f"LiteRT served again after {max(gaps) * 1000:.0f} ms at most of 2 kills"
    )
    return not failures and max(gaps) <= 1.0


def main() -> int:
    """Run one of them; exits with 1 where the promise falls short."""
    wanted = {"overhead": overhead, "mobilenet": mobilenet, "memory": memory, "restart": restart}
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=wanted)
    parser.add_argument("--front", choices=("native", "python"), default="native", help="of overhead and mobilenet")
    asked = parser.parse_args()
    front = {"front": asked.front} if asked.what in ("overhead", "mobilenet") else {}
    return 0 if wanted[asked.what](**front) else 1


if __name__ == "__main__":
    raise SystemExit(main())
