"""Deployments in the records: as they are taken up again, and as they change there."""

from __future__ import annotations

from functools import lru_cache

from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane_scheduler import present
from sealane_scheduler.cluster import Copy, Deployed
from sealane_scheduler.filters import VariantView
from sealane_scheduler.store import DeploymentRow, PlacementRow, Store

#: Versions that many deployments have are read once.
_KEPT = 256


def deployed(row: DeploymentRow) -> Deployed:
    """A deployment without copies."""
    return Deployed(row, present.demand_of(row.demand), _variants(row.version))


@lru_cache(_KEPT)
def _variants(version: bytes) -> tuple[VariantView, ...]:
    return present.variants(model_pb.Version.FromString(version))


def last_place(store: Store, row: DeploymentRow) -> bytes:
    """The last decision that found it a place, serialized, without what it was made from; empty where there is none."""
    kept = store.decisions(row.project, row.deployment)
    told = (pb.Decision.FromString(item.content) for item in kept)
    placed = next((decision for decision in told if decision.node), None)
    if placed is None:
        return b""
    placed.ClearField("record")
    return placed.SerializeToString()


def recollect(store: Store, now: float) -> tuple[list[Deployed], list[PlacementRow]]:
    """All deployments with their copies, and copies of what is not there any more.

    Args:
        store: the records.
        now: since when copies count as placed, in seconds since 1970.
    """
    found = {(row.project, row.deployment): deployed(row) for row in store.deployments()}
    orphans = []
    for placement in store.placements():
        item = found.get((placement.project, placement.deployment))
        if item is None:
            orphans.append(placement)
        else:
            item.copies.append(Copy(placement, since=now))
    for item in found.values():
        item.placed = last_place(store, item.row)
    return list(found.values()), orphans


def release(store: Store, row: PlacementRow) -> None:
    """A copy is not there any more."""
    store.release(row)


def update(store: Store, row: DeploymentRow) -> None:
    """A deployment is otherwise."""
    store.put_deployment(row)
