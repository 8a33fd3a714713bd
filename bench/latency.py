"""What a prediction costs on each way, against a bare TLS echo of the same run.

Absolute times differ from machine to machine: read the ratios. One caller, one row a call, int8 LiteRT.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np

from sealane.client import connect
from sealane.rpc import channel
from sealane.security import tls
from sealane_local.plan import Options
from sealane_local.stack import LocalStack

ROUNDS, CALLS, WARM_UP = 3, 300, 50
LIGHT = Path(__file__).resolve().parent.parent / "examples" / "digits" / "light"
_ECHO = "/bench.Echo/Call"


def serve_echo(identity: Path) -> None:
    """A synchronous grpcio server that returns what it gets, in this process, until killed."""
    from concurrent.futures import ThreadPoolExecutor

    loaded = tls.load(identity)
    assert loaded is not None
    server = grpc.server(ThreadPoolExecutor(8))
    handler = grpc.unary_unary_rpc_method_handler(lambda body, context: body)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Call": handler}),))
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(loaded, mesh=False))
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def p50(call: Callable[[], object]) -> float:
    """Median of the calls in microseconds."""
    laps = []
    for index in range(WARM_UP + CALLS):
        started = time.perf_counter()
        call()
        if index >= WARM_UP:
            laps.append(time.perf_counter() - started)
    return statistics.median(laps) * 1e6


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder, LocalStack(Options(Path(folder))) as stack:
        data = stack.options.data
        echo = subprocess.Popen(
            [sys.executable, __file__, "echo", str(data / "registry" / "identity")], stdout=subprocess.PIPE, text=True
        )
        assert echo.stdout is not None
        port = echo.stdout.readline().strip()
        try:
            with connect(data) as client:
                _measure(client, channel.Target(f"127.0.0.1:{port}", (data / "pki" / "ca.pem").read_bytes()))
        finally:
            echo.kill()
            echo.communicate()


def _measure(client, target) -> None:  # type: ignore[no-untyped-def]
    version = client.models.push(LIGHT / "litert-int8.tflite", "digits", variant="litert-int8")
    client.deployments.create("d", version.name, tier="edge")
    client.deployments.wait("d")
    image = {"image": np.load(LIGHT / "test.npz")["x"][:1].astype(np.float32)}
    wire = channel.dial(target).unary_unary(_ECHO)
    ways = {
        "bare TLS echo, 256 B": lambda: wire(bytes(256)),
        "SDK to the worker": lambda: client.inference.predict("d", image, via="direct"),
        "through the gateway": lambda: client.inference.predict("d", image),
        "sealed, to the worker": lambda: client.inference.predict("d", image, via="direct", sealed=True),
        "sealed, through the gateway": lambda: client.inference.predict("d", image, sealed=True),
    }
    laps: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            laps[name].append(p50(way))
    floor = statistics.median(laps["bare TLS echo, 256 B"])
    for name, values in laps.items():
        middle = statistics.median(values)
        print(f"{name:<28} p50 {middle:7.0f} us   {middle / floor:4.1f} x the echo")


if __name__ == "__main__":
    if sys.argv[1:2] == ["echo"]:
        serve_echo(Path(sys.argv[2]))
    else:
        main()
