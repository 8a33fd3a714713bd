"""SCHED-6: what ten thousand workers' streams cost the scheduler, over real gRPC with TLS on loopback.

``python -m bench.streams [--nodes N]``. Real auth, registry, scheduler and gateway as processes; two relays, processes
of their own that auth has enrolled, carry the streams, 100 on each connection. Every node has a statement signed with
auth's key. Told is, of the scheduler's process alone:

* memory over its idle self, by stream, beside what a bare grpc.aio server takes for the same streams in the same run;
* processor time over half a minute of heartbeats and pings, while one node in ten renews its statement;
* heartbeats that left late, streams that ended, nodes that were suspected wrongly;
* until a change for one node reaches it, and how many others were woken by it.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.peers.processes import cpu_us, memory
from bench.token_cases import signing_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.client import Client, connect
from sealane.scheduler.v1 import node_service_pb2 as node_pb
from sealane.security import enroll, statements, suites
from sealane_local import plan
from sealane_local.stack import LocalStack

LIGHT = Path(__file__).parents[1] / "examples/digits/light"
RELAYS, EACH = 2, 100
STEADY, WATCHED, ROUNDS = 30.0, 15.0, 20
#: Statements are good for ten minutes and renewed at half of that.
RENEWED = STEADY / (statements.LIFETIME_SECONDS / 2)
MEMORY_KB, CORES, CHANGE_MS = 60.0, 1.0, 100.0
MEASURE = "measure"


@dataclass(slots=True)
class Relay:
    """A process that carries streams."""

    process: subprocess.Popen[str]

    def ask(self, command: str = MEASURE) -> dict[str, object]:
        """What it saw since it was last asked."""
        self.tell(command)
        return self.hear()

    def tell(self, command: str) -> None:
        """Say something that has no answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, object]:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("a relay has ended")
        found: dict[str, object] = json.loads(line)
        return found


@dataclass(frozen=True, slots=True)
class Cost:
    """What streams cost a process."""

    kib: float
    rss_kib: float
    cores: float


def enrolled(client: Client, data: Path, name: str) -> Path:
    """The folder of a relay with its certificate."""
    folder, ports = data / name, json.loads((data / "endpoints.json").read_text())
    folder.mkdir()
    (folder / "token").write_text(client.join_tokens.create(relay=name).token)
    trust = data / "pki" / "ca.pem"
    enroll.ensure(enroll.EnrollConfig(folder, ports["auth"], ports["auth_mesh"], trust, folder / "token"))
    return folder


def write_statements(folder: Path, relay: str, nodes: list[str], key: Ed25519PrivateKey) -> None:
    """Two statements of each node, of keys of the suite that workers have."""
    told = []
    for node in nodes:
        place = {"tier": "edge", "zone": f"site-{node}", "region": "eu", "pool": "edge", "clearance": "restricted"}
        public = secrets.token_bytes(suites.PUBLIC_BYTES[suites.HYBRID])
        made = [
            statements.issue(
                node=node,
                suite=suites.HYBRID,
                public_key=public,
                attributes=place | {"relay": relay},
                key=key,
                now=time.time() + later,
            )
            for later in (0, 1)
        ]
        told.append((node, *made))
    (folder / "statements.json").write_text(json.dumps(told))


@contextmanager
def started(role: str, folder: Path, *arguments: str) -> Iterator[Relay]:
    """A process of :mod:`bench.stream_relay`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.stream_relay", role, str(folder), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Relay(process)
    finally:
        process.kill()
        process.wait()


@contextmanager
def carried(folders: list[Path], address: str, name: str) -> Iterator[list[Relay]]:
    """All streams, open."""
    with ExitStack() as stack:
        arguments = ("--address", address, "--name", name, "--each", str(EACH), "--renewed", str(RENEWED))
        relays = [stack.enter_context(started("relay", folder, *arguments)) for folder in folders]
        begun = time.monotonic()
        streams = sum(int(str(relay.hear()["streams"])) for relay in relays)
        sys.stdout.write(f"{streams} streams open after {time.monotonic() - begun:.0f} s\n")
        yield relays


def steady(pid: int, relays: list[Relay], nodes: int, idle: tuple[float, float]) -> Cost:
    """Cost of the streams over half a minute, after a moment to settle."""
    time.sleep(10.0)
    for relay in relays:
        relay.ask()
        relay.tell("renew")
    begun, before = time.monotonic(), cpu_us([pid])
    time.sleep(STEADY)
    cores = (cpu_us([pid]) - before) / 1e6 / (time.monotonic() - begun)
    now = memory([pid])
    return Cost((now.pss - idle[0]) * 1024 / nodes, (now.rss - idle[1]) * 1024 / nodes, cores)


def floor(folders: list[Path], identity: Path, nodes: int) -> Cost:
    """The same with a server that does nothing but read."""
    with started("bare", identity) as server:
        port = server.hear()["port"]
        pid = server.process.pid
        idle = memory([pid])
        with carried(folders, f"127.0.0.1:{port}", "scheduler.service.sealane") as relays:
            return steady(pid, relays, nodes, (idle.pss, idle.rss))


def suspected(client: Client, nodes: int) -> int:
    """Nodes that are not READY, at most, over a while."""
    worst, deadline = 0, time.monotonic() + WATCHED
    while time.monotonic() < deadline:
        others = [node for node in client.nodes.list() if node.state != node_pb.Node.STATE_READY]
        worst = max(worst, len(others))
        time.sleep(2.0)
    return worst


def reached(client: Client, relays: list[Relay], nodes: list[str]) -> tuple[list[float], int]:
    """Milliseconds from a command to the stream of the node that it concerns; others that were woken."""
    client.models.push(LIGHT / "litert-int8.tflite", "digits", variant="litert-int8", alias="latest")
    for relay in relays:
        relay.ask()
    times, others = list[float](), 0
    for index in range(ROUNDS):
        node = nodes[index * (len(nodes) // ROUNDS)]
        for assignments in (1, 0):
            begun = time.time()
            if assignments:
                client.deployments.create(
                    f"d{index}", "digits@latest", data_class="restricted", residency=[f"site-{node}"]
                )
            else:
                client.deployments.delete(f"d{index}")
            time.sleep(0.5)
            seen = [item for relay in relays for item in relay.ask()["changes"]]  # type: ignore[attr-defined]
            mine = [at for name, count, at in seen if name == node and count == assignments]
            others += sum(name != node for name, _, _ in seen)
            times.append((mine[0] - begun) * 1000 if mine else float("inf"))
    sys.stdout.write(f"until a change reaches its node, ms: {' '.join(f'{each:.0f}' for each in times)}\n")
    return times, others


def main() -> int:
    """Command line; exits with 1 where it falls short."""
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    count = parser.parse_args().nodes
    nodes = [f"edge-{index:05}" for index in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "stack"
        with LocalStack(plan.Options(data, workers=())) as stack, connect(data) as client:
            folders = [enrolled(client, data, f"relay-{index}") for index in range(RELAYS)]
            key = signing_key(data)
            for index, each in enumerate(folders):
                write_statements(each, f"relay-{index}", nodes[index::RELAYS], key)
            bare = floor(folders, data / "scheduler" / "identity", count)
            pid = stack.child("scheduler").pid
            assert pid is not None
            list(client.nodes.list())
            idle = memory([pid])
            address = json.loads((data / "endpoints.json").read_text())["scheduler_mesh"]
            with carried(folders, address, "scheduler.service.sealane") as relays:
                cost = steady(pid, relays, count, (idle.pss, idle.rss))
                seen = [relay.ask() for relay in relays]
                wrong = suspected(client, count)
                times, others = reached(client, relays, nodes)
                ends = [end for each in (*seen, *(relay.ask() for relay in relays)) for end in each["ended"]]  # type: ignore[attr-defined]
                sys.stdout.writelines(f"ended: {end}\n" for end in ends[:10])
                ended = len(ends)
    return told(count, cost, bare, seen, (wrong, ended, others), times)


def told(
    count: int,
    cost: Cost,
    bare: Cost,
    seen: list[dict[str, object]],
    wrongly: tuple[int, int, int],
    times: list[float],
) -> int:
    """Print all; the exit code."""
    beats, late, pings = (sum(int(str(each[name])) for each in seen) for name in ("beats", "late", "pings"))
    wrong, ended, others = wrongly
    middle, worst = statistics.median(times), max(times)
    sys.stdout.write(
        f"idle to {count} streams: {cost.rss_kib:.1f} KiB RSS each; bare grpc.aio {bare.rss_kib:.1f} KiB RSS, "
        f"{bare.cores:.2f} cores\n{beats} heartbeats and {pings} pings in {STEADY:.0f} s\n"
        f"figure: {cost.kib:.1f} KB PSS a stream ({bare.kib:.1f} KB of a bare grpc.aio stream), {cost.cores:.2f} of a "
        f"core; {late} of {beats} heartbeats late, {ended} streams ended, {wrong} nodes suspected wrongly; a change "
        f"reaches its node after {middle:.0f} ms (worst {worst:.0f}) from the command, {others} others woken\n"
    )
    holds = cost.kib <= MEMORY_KB and cost.cores <= CORES and not (late or ended or wrong or others)
    return 0 if holds and middle <= CHANGE_MS else 1


if __name__ == "__main__":
    sys.exit(main())
