"""A share for every project: one that floods a worker leaves room for the others."""

from __future__ import annotations

import threading

from sealane.errors import ResourceExhausted, SealaneError
from sealane.rpc.call import Call


class FairShare:
    """Refuses a project more than its share of the calls that a process takes.

    Projects with a call inside get the same share. One that is alone may have all but a twelfth, which is left for
    whoever comes next. Stands behind authentication, which tells the project.

    Args:
        capacity: calls that the process takes in all.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._inside: dict[str, int] = {}
        self._lock = threading.Lock()

    def before(self, call: Call) -> None:
        """Count the caller's project in."""
        project = call.identity.project if call.identity is not None else ""
        if not project:
            return
        with self._lock:
            mine = self._inside.get(project, 0)
            if mine >= self._share(len(self._inside) + (0 if mine else 1)):
                raise ResourceExhausted(
                    f"project {project} has its share of this worker, {mine} calls at once; back off and retry",
                    reason="FAIR_SHARE",
                    retry_after=0.05,
                )
            self._inside[project] = mine + 1

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Count it out."""
        project = call.identity.project if call.identity is not None else ""
        if not project:
            return
        with self._lock:
            if self._inside[project] > 1:
                self._inside[project] -= 1
            else:
                del self._inside[project]

    def _share(self, projects: int) -> int:
        if projects == 1:
            return self._capacity - self._capacity // 12
        return max(self._capacity // projects, 1)
