"""Takes away what nothing refers to: artifacts of no version, dataset, deployment or job."""

from __future__ import annotations

from collections.abc import Callable

from sealane.clock import Clock
from sealane.records.tables import Actor
from sealane_registry.blobs import Blobs
from sealane_registry.store import Store

#: What is younger may belong to a push under way.
GRACE_SECONDS = 24 * 3600.0
#: Watches can go on from so long ago.
CHANGES_SECONDS = 7 * 86_400.0
#: Who collects, in the audit log.
COLLECTOR = "spiffe://sealane/service/registry"
BATCH = 200


def drop_artifacts(store: Store, clock: Clock, grace: float = GRACE_SECONDS) -> tuple[int, int]:
    """Take up to BATCH artifacts from their projects, in one transaction; returns their number and bytes.

    What belonged to a model or dataset that was deleted goes once the scheduler has told, after the deletion, what is
    in use; while it never told anything, nothing of that goes.
    """
    now = clock.now()
    found = store.unreferenced(now - grace, store.use_reported(), BATCH)
    for project, sha256, size in found:
        store.drop_artifact(project, sha256)
        name = f"projects/{project}/artifacts/{sha256}"
        store.record(Actor(COLLECTOR, project), "CollectArtifact", name, now, size=str(size))
    return len(found), sum(size for _, _, size in found)


def drop_blobs(blobs: Blobs, clock: Clock, free: Callable[[str], bool], grace: float = GRACE_SECONDS) -> int:
    """Remove blobs that no project has; returns their number. Blocks on the disk.

    Args:
        blobs: where they lie.
        clock: for their age.
        free: whether no project has a digest, asked of the records.
        grace: age in seconds below which a blob stays: its upload may not be recorded yet.
    """
    count = 0
    for blob in list(blobs.list()):
        if blob.modified < clock.now() - grace and free(blob.sha256):
            count += blobs.remove(blob, lambda sha256=blob.sha256: free(sha256))  # type: ignore[misc]
    return count
