"""Figures of the demo: `fresh` times it in a clone, the others read the report of a run of this commit."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "var" / "demo" / "report.json"
_FRESH_SECONDS = 600.0


def report() -> dict[str, dict[str, object]]:
    """The demo's report; the demo is run where there is none of the last ten minutes."""
    if not REPORT.exists() or time.time() - REPORT.stat().st_mtime > _FRESH_SECONDS:
        subprocess.run(["make", "demo"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads(REPORT.read_text())


def accuracy() -> bool:
    """DEMO-2."""
    found = report()
    floating, int8 = found["accuracy"]["savedmodel"], found["accuracy"]["litert_int8"]
    share = found["bytes"]["litert_int8"] / found["bytes"]["litert_float"]
    print(f"figure: float {floating:.4f}, int8 {int8:.4f}, int8 file {share:.0%} of the float one")
    return floating >= 0.95 and floating - int8 <= 0.02 and share <= 0.40


WANTED = {
    "no_token": "UNAUTHENTICATED",
    "wrong_scope": "PERMISSION_DENIED",
    "tampered": "INVALID_ARGUMENT",
    "stolen_token": "UNAUTHENTICATED",
    "wrong_shape": "INVALID_ARGUMENT",
    "restricted": "UNAVAILABLE",
}


def refusals() -> bool:
    """DEMO-3."""
    found = report()["refused"]
    right = sum(found.get(name) == code for name, code in WANTED.items())
    print(f"figure: {right} of {len(WANTED)} as wanted: {', '.join(found[name] for name in WANTED)}")
    return right == len(WANTED)


def failover() -> bool:
    """DEMO-4."""
    found = report()
    failed, took, constraint = found["failed_during_failover"], found["failover_ms"], found["restricted_constraint"]
    print(f"figure: {failed} failed, first answer after {took} ms, A refused by {constraint}")
    return failed == 0 and took is not None and took <= 3000 and constraint == "residency"


def fresh() -> bool:
    """DEMO-1, in a clone of the committed tree."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        first, again, _, check, test = (timed(clone, goal) for goal in ("demo", "demo", "check", "check", "test"))
    print(f"figure: demo {first:.0f} s with installs, {again:.0f} s again; check {check:.0f} s; test {test:.0f} s")
    return first < 360 and again < 90 and check < 60


def timed(clone: Path, goal: str) -> float:
    """Seconds that a goal of the Makefile takes; it must succeed."""
    started = time.monotonic()
    subprocess.run(["make", goal], cwd=clone, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    goals = {"accuracy": accuracy, "refusals": refusals, "failover": failover, "fresh": fresh}
    sys.exit(0 if goals[sys.argv[1]]() else 1)
