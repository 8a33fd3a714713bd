"""AUTH-8: what a legitimate client feels while another connection resets streams as fast as it can.

``python -m bench.hostile resets`` prints the figure; the counts are asserted by tests/stack/test_hostile_wire.py too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
from bench.http2 import Door, rapid_reset

from sealane.client import connect
from sealane.rpc.channel import Target, dial
from sealane_local.plan import CLOUD, EDGE, Options
from sealane_local.stack import LocalStack

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 5.0
BOUND_MS = 250.0
_LIVE = "/inference.GRPCInferenceService/ServerLive"
#: (service, what a legitimate client calls there): an asyncio server, a worker's synchronous front and its native one.
CALLS = {"registry": "/sealane.registry.v1.ModelService/ListModels", EDGE.node: _LIVE, CLOUD.node: _LIVE}
BODIES = {"registry": b"\x0a\x10projects/default", EDGE.node: b"", CLOUD.node: b""}
_KINDS = {"registry": "aio", EDGE.node: "sync", CLOUD.node: "native"}


@dataclass
class Felt:
    """What a client saw of one attack."""

    resets: int = 0
    ended: bool = False
    times_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def p99_ms(self) -> float:
        """99th percentile of the calls that were answered."""
        return sorted(self.times_ms)[int(len(self.times_ms) * 0.99)]


def attacked(door: Door, call: tuple[str, bytes, str], seconds: float = SECONDS) -> Felt:
    """Attack a listener from a process of its own while a client on another connection goes on working.

    Args:
        door: the listener.
        call: method path, body and token of the client's calls; the attacker has no token.
        seconds: how long.
    """
    path, body, token = call
    felt = Felt()
    with dial(Target(door.address, door.trust, door.name)) as channel:
        method = channel.unary_unary(path)
        metadata = (("authorization", f"Bearer {token}"),)
        method(body, timeout=10, metadata=metadata)
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                begun = time.monotonic()
                try:
                    method(body, timeout=10, metadata=metadata)
                    felt.times_ms.append((time.monotonic() - begun) * 1000)
                except grpc.RpcError as failure:
                    felt.failures.append(f"{failure.code()}: {failure.details()}")
                time.sleep(0.005)

        worker = threading.Thread(target=work, name="legitimate")
        worker.start()
        try:
            felt.resets, felt.ended = _attack(door, path, seconds)
        finally:
            over.set()
            worker.join()
    return felt


def _attack(door: Door, path: str, seconds: float) -> tuple[int, bool]:
    with tempfile.NamedTemporaryFile(suffix=".pem") as trust:
        trust.write(door.trust)
        trust.flush()
        command = [
            sys.executable,
            "-m",
            "bench.hostile",
            "attack",
            door.address,
            trust.name,
            door.name,
            path,
            str(seconds),
        ]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=seconds + 60)
    sent, ended = json.loads(done.stdout)
    return sent, ended


def resets() -> bool:
    """Both kinds of server; prints the figure."""
    figures, holds = [], True
    edge = replace(EDGE, environment={"SEALANE_WORKER_FRONT": "python"})
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with LocalStack(Options(data, workers=(edge, CLOUD))) as stack, connect(data) as client:
            endpoints = json.loads((data / "endpoints.json").read_text())
            trust = (data / "pki" / "ca.pem").read_bytes()
            doors = {
                "registry": Door(endpoints["registry"], trust, "registry.service.sealane"),
                EDGE.node: Door(stack.worker_address(EDGE.node), trust, f"{EDGE.node}.node.sealane"),
                CLOUD.node: Door(stack.worker_address(CLOUD.node), trust, f"{CLOUD.node}.node.sealane"),
            }
            for name, door in doors.items():
                token = client.token("sealane-registry" if name == "registry" else "sealane-inference")
                felt = attacked(door, (CALLS[name], BODIES[name], token))
                holds = holds and not felt.failures and felt.p99_ms <= BOUND_MS
                figures.append(
                    f"{_KINDS[name]}: {felt.resets / SECONDS / 1000:.0f}k resets/s, {len(felt.failures)} of "
                    f"{len(felt.times_ms) + len(felt.failures)} failed, p99 {felt.p99_ms:.0f} ms"
                )
                print(*sorted(set(felt.failures))[:5], sep="\n")
    print("figure: " + "; ".join(figures))
    return holds


def main() -> int:
    """Run what the command line names."""
    if sys.argv[1] == "attack":
        address, trust, name, path, seconds = sys.argv[2:]
        sent = rapid_reset(Door(address, Path(trust).read_bytes(), name), path, float(seconds))
        print(json.dumps(sent))
        return 0
    return 0 if {"resets": resets}[sys.argv[1]]() else 1


if __name__ == "__main__":
    sys.exit(main())
