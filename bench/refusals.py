"""How long a service takes to refuse each token of the catalogue, and so whether the time tells what is wrong.

``python -m bench.refusals [ROUNDS]`` prints the medians of one service, the registry, and their spread. It is a figure,
no pass or fail: two processes on one machine measure each other's work too.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import grpc
from bench.token_cases import CASES, Forge, signing_key

from sealane.rpc.channel import Target, dial
from sealane_local.plan import EDGE, Options
from sealane_local.stack import LocalStack

PATH = "/sealane.registry.v1.ModelService/ListModels"
BODY = b"\xff\xff\xff\xff"
ROUNDS = 200
SHOWN = 3


def medians(channel: grpc.Channel, forge: Forge, rounds: int) -> dict[str, float]:
    """Milliseconds of each case: the median of `rounds` calls, the cases shuffled anew in every round."""
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PATH)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    # Made once: a token by RSA takes long to make, and what is refused is never cached.
    metadata = {name: case.make(forge) for name, case in CASES.items()}
    order = list(CASES)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            begun = time.perf_counter()
            try:
                method(BODY, timeout=10, metadata=metadata[name])
            except grpc.RpcError as failure:
                if failure.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    raise
            times[name].append((time.perf_counter() - begun) * 1000)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> int:
    """Measure, print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with LocalStack(Options(data, workers=(EDGE,))):
            address = json.loads((data / "endpoints.json").read_text())["registry"]
            trust = (data / "pki" / "ca.pem").read_bytes()
            forge = Forge(signing_key(data), "sealane-registry", ("models:read",))
            with dial(Target(address, trust, "registry.service.sealane")) as channel:
                medians(channel, forge, 5)  # connect, fill caches, let the unknown kid ask for keys once
                found = medians(channel, forge, rounds)
    ranked = sorted(found, key=found.__getitem__)
    for name in (*ranked[:SHOWN], "...", *ranked[-SHOWN:]):
        print(f"{found[name]:.3f} ms  {name}" if name in found else name)
    middle = statistics.median(found.values())
    low, high = (found[ranked[index]] / middle - 1 for index in (0, -1))
    within = sum(abs(value / middle - 1) <= 0.2 for value in found.values())
    print(
        f"figure: {len(found)} refusals, median {middle:.3f} ms, spread of their medians {low:+.0%} to {high:+.0%}, "
        f"{within} of {len(found)} within 20 %"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
