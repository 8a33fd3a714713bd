"""A share for every project: one that floods a worker leaves room for the others."""

from __future__ import annotations

from sealane.errors import ResourceExhausted, SealaneError
from sealane.rpc.call import Call
from sealane.rpc.places import Admission, Places


class FairShare:
    """Refuses a project more than its share of the calls that a process takes (:class:`sealane.rpc.places.Places`).

    Stands behind authentication, which tells the project.

    Args:
        capacity: calls that the process takes in all.
        places: where they are counted; none for places of its own.
    """

    def __init__(self, capacity: int, places: Admission | None = None) -> None:
        self._places = places or Places(capacity)

    def before(self, call: Call) -> None:
        """Count the caller's project in."""
        project = call.identity.project if call.identity is not None else ""
        if not project:
            return
        mine = self._places.join(project)
        if mine >= 0:
            raise ResourceExhausted(
                f"project {project} has its share of this worker, {mine} calls at once; back off and retry",
                reason="FAIR_SHARE",
                retry_after=0.05,
            )

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Count it out."""
        project = call.identity.project if call.identity is not None else ""
        if project:
            self._places.part(project)
