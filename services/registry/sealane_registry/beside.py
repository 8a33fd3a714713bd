"""Digests of what is being written: a disk and SHA-256 take about as long, and neither waits for the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

_THREADS = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="beside")


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do some work on another thread while the block runs; both have ended behind it. Raises what either does."""
    running = _THREADS.submit(work)
    try:
        yield
    finally:
        wait([running])
    running.result()
