"""What this machine has, as far as the scheduler wants to know it. Measured, not configured."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BENCHMARK_SECONDS = 0.05
BENCHMARK_SIZE = 256


@dataclass(frozen=True, slots=True)
class Machine:
    """Capacity of this machine.

    Attributes:
        cpu_milli: processors this process may use, in thousandths.
        memory_bytes: memory of the machine, or of this container where it is limited.
        disk_bytes: free disk under the data folder.
        device_class: such as ``x86_64-2cpu``; measurements are comparable within one class.
        speed: float32 256x256 matrix products per second on one thread pool of numpy.
    """

    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    device_class: str
    speed: float


def measure(folder: Path) -> Machine:
    """Measure; takes about 50 ms."""
    cpus = len(processors())
    return Machine(
        cpu_milli=cpus * 1000,
        memory_bytes=memory_limit_bytes(),
        disk_bytes=shutil.disk_usage(folder).free,
        device_class=device_class(),
        speed=_speed(),
    )


def device_class() -> str:
    """Class of this machine: architecture and usable processors."""
    return f"{platform.machine()}-{len(processors())}cpu"


@functools.cache
def processors() -> frozenset[int]:
    """The processors that this process was started on; it may keep to fewer of them later."""
    return frozenset(os.sched_getaffinity(0))


def free_memory_bytes() -> int:
    """Memory that could be used without swapping, 0 where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    available = next((line for line in lines if line.startswith("MemAvailable:")), "")
    return int(available.split()[1]) * 1024 if available else 0


def memory_limit_bytes() -> int:
    """Memory of the machine, or of this container where it is limited."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _speed() -> float:
    left = np.ones((BENCHMARK_SIZE, BENCHMARK_SIZE), np.float32)
    np.matmul(left, left)  # the first product pays for starting the thread pool
    products, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < BENCHMARK_SECONDS:
        np.matmul(left, left)
        products += 1
    return products / elapsed
