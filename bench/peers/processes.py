"""What the servers' processes cost, from /proc, with all that they started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

#: What outlives its parent is given this long.
_ORPHAN_SECONDS = 2.0
_TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """In MB: what each process maps, and the same with shared pages counted once."""

    rss: float
    pss: float


def tree(roots: list[int]) -> list[int]:
    """The processes, everything below them, and what is left in the sessions that they lead: orphans too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                for above in {int(fields[1]), int(fields[3])} - {int(entry.name)}:
                    children.setdefault(above, []).append(int(entry.name))
    found, waiting = set[int](), list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return sorted(found)


def cpu_us(roots: list[int]) -> float:
    """Processor time so far of the tree, with children that have ended."""
    ticks = 0
    for pid in tree(roots):
        fields = _stat(pid)
        if fields:
            ticks += sum(int(value) for value in fields[11:15])
    return ticks * _TICK_US


def machine_us() -> float:
    """Processor time so far of everything on the machine, what the hypervisor took included."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK_US


def memory(roots: list[int]) -> Memory:
    """Of the tree, now."""
    rss = pss = 0
    for pid in tree(roots):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        rss += sum(map(int, re.findall(r"^Rss:\s+(\d+)", text, re.MULTILINE)))
        pss += sum(map(int, re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)))
    return Memory(rss / 1024, pss / 1024)


def end(process: subprocess.Popen[bytes], seconds: float = 8.0) -> None:
    """End a process that was started here and everything below it: politely, then not."""
    # A pid alone may be another process by the time it is killed: the start time tells.
    below = {pid: _started(pid) for pid in tree([process.pid])}
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(at and _started(pid) == at for pid, at in below.items()):
        if process.poll() is not None:
            deadline = min(deadline, time.monotonic() + _ORPHAN_SECONDS)
        time.sleep(0.05)
    below |= {pid: _started(pid) for pid in tree([process.pid]) if pid != process.pid}
    for pid, at in below.items():
        if at and _started(pid) == at:
            os.kill(pid, signal.SIGKILL)
    process.wait(seconds)
    while time.monotonic() < deadline + seconds and any(at and _started(pid) == at for pid, at in below.items()):
        time.sleep(0.01)


def _started(pid: int) -> str:
    """When a process that still runs was started, in ticks since the machine was; empty where it has ended."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def _stat(pid: int) -> list[str]:
    """Fields from the state on; the name before may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
