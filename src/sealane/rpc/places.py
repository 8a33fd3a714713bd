"""How many calls are inside, and each project's share of them.

A listener beside this one that is not written in Python counts its calls in the same way: it brings places of its own,
and the middleware counts in those.
"""

from __future__ import annotations

import threading
from typing import Protocol


class Admission(Protocol):
    """Where calls are counted. Every method may be called from any thread."""

    @property
    def in_flight(self) -> int:
        """Calls inside now."""
        ...

    def enter(self, force: bool) -> bool:
        """Count a call in; false where no place is free. With `force` it is counted in all the same."""
        ...

    def leave(self) -> None:
        """Count it out."""
        ...

    def take_counts(self) -> tuple[int, int]:
        """Most calls at the same time, and calls that ended, since this was last asked."""
        ...

    def join(self, project: str) -> int:
        """Count a call of a project in; the calls that it has inside where these are its share already, else -1."""
        ...

    def part(self, project: str) -> None:
        """Count it out."""
        ...


class Places:
    """The places of a process whose calls all come through Python.

    Projects with a call inside get the same share. One that is alone may have all but a twelfth, which is left for
    whoever comes next.

    Args:
        capacity: calls that the process takes in all.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._in_flight = self._peak = self._ended = 0
        self._inside: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Calls inside now."""
        return self._in_flight

    def enter(self, force: bool) -> bool:
        """See :meth:`Admission.enter`."""
        with self._lock:
            if self._in_flight >= self._capacity and not force:
                return False
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            return True

    def leave(self) -> None:
        """See :meth:`Admission.leave`."""
        with self._lock:
            self._in_flight -= 1
            self._ended += 1

    def take_counts(self) -> tuple[int, int]:
        """See :meth:`Admission.take_counts`."""
        with self._lock:
            counts = (self._peak, self._ended)
            self._peak, self._ended = self._in_flight, 0
        return counts

    def join(self, project: str) -> int:
        """See :meth:`Admission.join`."""
        with self._lock:
            mine = self._inside.get(project, 0)
            if mine >= self._share(len(self._inside) + (0 if mine else 1)):
                return mine
            self._inside[project] = mine + 1
            return -1

    def part(self, project: str) -> None:
        """See :meth:`Admission.part`."""
        with self._lock:
            if self._inside[project] > 1:
                self._inside[project] -= 1
            else:
                del self._inside[project]

    def _share(self, projects: int) -> int:
        if projects == 1:
            return self._capacity - self._capacity // 12
        return max(self._capacity // projects, 1)
