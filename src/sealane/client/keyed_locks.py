"""One lock for each of many things, with a limit to the waiting."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator

from sealane.client.calls import remaining
from sealane.errors import DeadlineExceeded


class KeyedLocks:
    """Locks by key; each is there while somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, key: Hashable, deadline: float) -> Iterator[None]:
        """Hold the lock of `key`.

        Args:
            key: of what.
            deadline: monotonic time at which nobody waits any more.

        Raises:
            DeadlineExceeded: another holds it for too long.
        """
        with self._lock:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = lock, users + 1
        try:
            if not lock.acquire(timeout=remaining(deadline)):
                raise DeadlineExceeded("another call took too long to prepare the same; allow more with timeout")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._lock:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = lock, users - 1
