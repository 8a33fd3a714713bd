"""What nodes may read and store in the registry for their work; signed once, and again before it is over."""

from __future__ import annotations

from sealane.clock import Clock
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.security import work_grants
from sealane.security.tls import PeerIdentity
from sealane.security.work_grants import WorkGrant
from sealane_scheduler import task_kinds

_RENEW_SECONDS = work_grants.LIFETIME_SECONDS / 2
_CAPACITY = 4096


class Grants:
    """Signs grants with the scheduler's own certificate, and keeps them while they are good for long.

    Args:
        identity: the scheduler's certificate.
        clock: tells the time.
    """

    def __init__(self, identity: PeerIdentity, clock: Clock) -> None:
        self._identity = identity
        self.clock = clock
        self._signed: dict[WorkGrant, tuple[bytes, float, str]] = {}

    def to_serve(self, node: str, variant: str) -> str:
        """A grant to read the files of a variant."""
        return self._sign(WorkGrant(node, variant.split("/")[1], variant))

    def to_work(self, node: str, task: pb.TaskAssignment) -> str:
        """A grant to read what a task works on, and to store its results."""
        if task.HasField("optimise"):
            spec, variant = task.optimise.spec, task.optimise.source.name
            digests: tuple[str, ...] = (spec.calibration_sha256, spec.test_sha256)
        else:
            variant, digests = task_kinds.variant_of(task).name, task_kinds.digests_of(task)
        return self._sign(WorkGrant(node, task.task.split("/")[1], variant, digests, upload=True))

    def _sign(self, grant: WorkGrant) -> str:
        now, chain = self.clock.now(), self._identity.certificate_chain
        found = self._signed.get(grant)
        # A renewed certificate signs anew: the one before may have been signed by an intermediate that is distrusted.
        if found is None or found[0] != chain or now >= found[1]:
            if len(self._signed) >= _CAPACITY:
                self._signed.clear()
            found = (chain, now + _RENEW_SECONDS, work_grants.issue(grant, self._identity, now))
            self._signed[grant] = found
        return found[2]
