"""How fast this worker's connection carries what is large, either way: measured from what has to travel anyway."""

from __future__ import annotations

import threading
from dataclasses import dataclass

#: Smaller transfers measure round trips and not the link.
LEAST_BYTES = 256 * 1024
#: A transfer of so many bytes counts as much as all that was measured before.
HALF_BYTES = 4 << 20


@dataclass(slots=True)
class _Speed:
    bytes_per_second: float = 0.0

    def carried(self, size: int, seconds: float) -> None:
        if size < LEAST_BYTES or seconds <= 0:
            return
        weight = size / (size + HALF_BYTES) if self.bytes_per_second else 1.0
        self.bytes_per_second += weight * (size / seconds - self.bytes_per_second)


class LinkMeter:
    """Speeds of one connection. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._down, self._up = _Speed(), _Speed()

    def came(self, size: int, seconds: float) -> None:
        """So many bytes came here in that time."""
        with self._lock:
            self._down.carried(size, seconds)

    def left(self, size: int, seconds: float) -> None:
        """So many bytes left, and arrived, in that time."""
        with self._lock:
            self._up.carried(size, seconds)

    @property
    def speeds(self) -> tuple[float, float]:
        """Bytes a second towards this worker, and from it; 0 where nothing large has travelled yet."""
        return self._down.bytes_per_second, self._up.bytes_per_second
