"""What sealing costs: `python -m bench.sealed cost crypto primitives` (SEAL-4).

Cost over an unsealed call: one caller, calls of every kind in turn, direct and through the gateway, 150 KB in and a few
bytes out, the hybrid suite, one recipient. What sealing and opening do alone: 10 MB in one thread. All of it with the
native library, where that is installed; `--client python` and `--front python` leave it out, on the one side and on the
other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from bench.peers.models import MODELS
from bench.peers.sealane import Sealane
from bench.worker import started
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.client import Client, connect
from sealane.clock import SystemClock
from sealane.native import library
from sealane.rpc.call import Identity
from sealane.security import jws, native_envelope, suites
from sealane.security.envelope import Bound, Target
from sealane.security.native_opening import NativeOpener
from sealane.security.opener import Opener
from sealane.security.sealed_chunks import chunk_count
from sealane_local.plan import MALLOC

ROUNDS, CALLS, WARM_UP = 8, 150, 25
BOUND_US, SESSION_BOUND_US, BYTES_PER_SECOND = 350.0, 120.0, 1.5e9
MODEL = MODELS["mean-150k"]
KINDS: dict[str, dict[str, object]] = {
    "unsealed": {},
    "sealed": {"sealed": True},
    "session": {"sealed": "session"},
}


def _medians(client: Client, via: str) -> tuple[dict[str, float], dict[str, float]]:
    """Median time of each kind of call in microseconds, and what one takes of this process's processor time.

    A block of each in turn, as callers call.
    """
    inputs, laps = {MODEL.input: MODEL.sample()}, {name: list[float]() for name in KINDS}
    processor = dict.fromkeys(KINDS, 0.0)
    for _ in range(ROUNDS):
        for name, options in KINDS.items():
            at = time.process_time()
            for index in range(WARM_UP + CALLS):
                begun = time.perf_counter()
                client.inference.predict(MODEL.name, inputs, via=via, **options)  # type: ignore[arg-type]
                if index >= WARM_UP:
                    laps[name].append((time.perf_counter() - begun) * 1e6)
            processor[name] += (time.process_time() - at) * 1e6 / (WARM_UP + CALLS) / ROUNDS
    return {name: statistics.median(times) for name, times in laps.items()}, processor


def cost(front: str) -> bool:
    """Sealed and unsealed calls in one run."""
    good = True
    with started(Sealane(front=front)) as server, connect(server._data) as client:  # the bench's own server
        chosen = client.inference.sealing.contexts
        for via in ("direct", "gateway"):
            medians, processor = _medians(client, via)
            sealed, session = (medians[name] - medians["unsealed"] for name in ("sealed", "session"))
            print(
                f"{via}: p50 {medians['unsealed']:.0f} us unsealed, {medians['sealed']:.0f} us sealed, "
                f"{medians['session']:.0f} us in a session"
            )
            print(
                f"figure: {via}, 150 KB, hybrid, one recipient: p50 + {sealed:.0f} us, in a session + {session:.0f} us"
            )
            # Envelopes are made beside the calls, so a caller waits for less than what they cost.
            told = ", ".join(f"{processor[name]:.0f} us {name}" for name in KINDS)
            print(f"{via}: processor time of the client for a call: {told}")
            good = good and sealed <= BOUND_US and session <= SESSION_BOUND_US
        (context,) = chosen._known.values()  # so that the figure is of what it says
        assert [item.statement.suite for item in context.candidates] == [suites.HYBRID]
    return good


def crypto(_: str) -> bool:
    """Seal and open 10 MB, without any wire.

    In the memory settings that services are started with, which keep what they have: otherwise the kernel clears pages
    for each large message anew, and that is most of the time.
    """
    served, bare = _alone(MALLOC), _alone({})
    print(
        f"figure: seal and open of 10 MB: {served / 1e9:.2f} GB/s on one core "
        f"({bare / 1e9:.2f} in a process that gives its memory back each time)"
    )
    return served >= BYTES_PER_SECOND


def _alone(settings: Mapping[str, str]) -> float:
    """Bytes a second, measured in a process of its own with some settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    way = "native" if native_envelope.installed() else "python"
    command = [sys.executable, "-m", "bench.sealed", "seal-and-open", "--client", way]
    told = subprocess.run(command, env={**kept, **settings}, capture_output=True, text=True, check=True)
    return float(told.stdout)


def seal_and_open(_: str) -> bool:
    """Print the bytes a second at which one thread seals and opens 10 MB."""
    sender, pair, content = Ed25519PrivateKey.generate(), suites.generate(suites.HYBRID), os.urandom(10_000_000)
    caller = Identity("a", "p", token_id="t", key_thumbprint=jws.thumbprint(sender.public_key().public_bytes_raw()))
    opener = (NativeOpener if native_envelope.installed() else Opener)(pair, SystemClock())
    target, chunks = Target(pair.key_id, pair.public_key, "sha256:x"), chunk_count(content)

    def once() -> None:
        bound = Bound(pair.suite, "p", "projects/p/deployments/d", METHOD, os.urandom(16), "t", int(time.time() * 1000))
        sealed = native_envelope.prepare(chunks, bound, [target], sender).seal(content)
        assert opener.open_body(sealed.wire, caller, lambda _: "sha256:x").plaintext[:1] == content[:1]

    print(len(content) / _median_of(once, 60))
    return True


def primitives(front: str) -> bool:
    """What one wrap costs over and over, and right after a call: what the bound of a single call rests on."""
    pair = suites.generate(suites.HYBRID)
    how = library.wrap if native_envelope.installed() else suites.wrap

    def wrap() -> None:
        how(pair.suite, pair.public_key, bytes(64), bytes(300))

    with started(Sealane(front=front)) as server, connect(server._data) as client:  # the bench's own server
        inputs = {MODEL.input: MODEL.sample()}
        hot, after = list[float](), list[float]()
        for laps, before in ((hot, wrap), (after, lambda: client.inference.predict(MODEL.name, inputs, via="direct"))):
            for _ in range(300):
                before()
                begun = time.perf_counter()
                wrap()
                laps.append((time.perf_counter() - begun) * 1e6)
    over, right_after = statistics.median(hot), statistics.median(after)
    print(f"figure: one hybrid wrap takes {over:.0f} us over and over, {right_after:.0f} us right after a call")
    return True


METHOD = "/inference.GRPCInferenceService/ModelInfer"


def _median_of(work: Callable[[], None], times: int) -> float:
    """Median of the seconds that `work` takes."""
    laps = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        laps.append(time.perf_counter() - begun)
    return statistics.median(laps)


def main() -> int:
    """Run what is asked for; the exit status says whether all of it holds."""
    checks = {"cost": cost, "crypto": crypto, "primitives": primitives, "seal-and-open": seal_and_open}
    parser = argparse.ArgumentParser(prog="python -m bench.sealed", description=__doc__)
    parser.add_argument("wanted", nargs="*", default=list(checks)[:3], choices=list(checks))
    parser.add_argument("--client", choices=["native", "python"], default="native", help="where that is installed")
    parser.add_argument("--front", choices=["auto", "python"], default="auto", help="of the worker")
    given = parser.parse_args()
    if given.client == "python":
        setattr(native_envelope, "library", None)  # noqa: B010  # it is not that module's to give
    held = [checks[name](given.front) for name in given.wanted]  # all of them, whichever falls short
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
