"""Tells statistics of the native front again and again while garbage is collected; a program, for it may never end.

To make an object of Python may run the garbage collector, and that anybody's code, which lets other threads compute.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import sealane_native

SECONDS = 3.0


class Garbage:
    """In a cycle, and slow to end."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        for _ in range(20_000):
            pass


def main() -> None:
    """Ends by itself where nobody waits for a lock while he keeps all others from computing."""
    statistics = sealane_native.Statistics([0.1, 1.0])

    def tell() -> None:
        kept: list[object] = []
        while True:
            # Objects that are kept use up those that were ready, so that telling has to make some.
            kept.append([{} for _ in range(100)] + [[] for _ in range(100)])
            Garbage()
            kept.append(statistics.counts())
            if len(kept) > 300:
                kept.clear()

    def use() -> None:
        while True:
            statistics.begin()
            statistics.end()

    sys.setswitchinterval(0.0002)
    for work in (tell, use):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()
