"""Load-check jobs: variants go to nodes that can load them, one node after the other, until each was loaded once.

What was found so far lies in the job. A variant that no worker can load is found not loadable without a node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from sealane.errors import NotFound, SealaneError
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.times import time_of
from sealane.scheduler.v1 import fleet_service_pb2 as fleet_pb
from sealane.scheduler.v1 import job_service_pb2 as job_pb
from sealane_scheduler import check_placement, present
from sealane_scheduler.controller import Controller
from sealane_scheduler.filters import NodeView
from sealane_scheduler.fleet import DEAD
from sealane_scheduler.jobs import JobRules, Outcome
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.store import JobRow, Store

log = logging.getLogger("sealane.jobs")

#: How long a job waits for a worker that can load a variant before it says that there is none: after a start, workers
#: come one by one.
PATIENCE_SECONDS = 5.0
#: Most that is kept of each thing that a node says of a variant.
MAX_CHARACTERS = 2000


class CheckJobs:
    """What is done with load-check jobs; used by the loop over jobs."""

    def __init__(
        self, records: Transactions[Store], rules: JobRules, controller: Controller, registry: RegistryPort
    ) -> None:
        self._records = records
        self._rules = rules
        self._controller = controller
        self._registry = registry
        self._began = rules.now()
        # Of jobs that wait: format, runtime and owner's demands of a variant never change.
        self._versions: dict[str, model_pb.Version] = {}

    async def choose(self, row: JobRow, busy: set[str]) -> str:
        """The node for a waiting job; empty where it has to wait, or has ended just now."""
        job = present.job(row)
        version = await self._version(row, job.check.version)
        if version is None:
            return ""
        wanted = set(_left(job))
        variants = [view for view in present.variants(version) if view.variant in wanted]
        nodes = self._controller.nodes()
        free = [view for view in nodes if view.alive and not view.draining and view.node not in busy]
        node = check_placement.choose(free, variants)
        if not node and self._rules.now() - max(self._began, row.update_time) >= PATIENCE_SECONDS:
            found = check_placement.hopeless(self._living(nodes), variants)
            if found:
                await self._give_up(row, job, found)
        return node

    def forget(self, waiting: Iterable[str]) -> None:
        """Keep versions of these jobs alone."""
        kept = set(waiting)
        self._versions = {name: version for name, version in self._versions.items() if name in kept}

    async def task(self, row: JobRow) -> fleet_pb.CheckTask:
        """What a node is to load: all that was not loaded yet; it leaves out what it has no runtime for.

        Raises:
            SealaneError: the registry's.
        """
        job = present.job(row)
        version = await asyncio.to_thread(self._registry.version, job.check.version)
        wanted = set(_left(job))
        return fleet_pb.CheckTask(
            variants=[fleet_pb.CheckedVariant(variant=item) for item in version.variants if _id(item.name) in wanted],
            signatures=version.signatures,
        )

    def outcome(self, job: job_pb.Job, request: fleet_pb.FinishTaskRequest, node: str) -> Outcome:
        """What a worker's result means: its findings are added to those that are there."""
        left = set(_left(job))
        added = [item for item in request.checks if item.variant_id in left]
        error, retryable = request.error, request.retryable
        if not error and not added:
            error, retryable = f"node {node} loaded none of the variants; see its log", True
        results = self._with(job, added, node)
        return Outcome(error=error, retryable=retryable, results=results, gated=False)

    async def record(self, row: JobRow) -> None:
        """Have the registry know what was found, and end the job or let it wait for another node.

        Raises:
            SealaneError: the registry's.
        """
        job = present.job(row)
        await asyncio.to_thread(self._registry.record_checks, job)
        if _left(job):
            progress = len(job.checks) / len(job.check.variants)
            await self._records.write(lambda store: self._rules.go_on(store, row, progress))
        else:
            await self._records.write(lambda store: self._rules.registered(store, row, row.results))

    async def _version(self, row: JobRow, name: str) -> model_pb.Version | None:
        if row.name not in self._versions:
            try:
                self._versions[row.name] = await asyncio.to_thread(self._registry.version, name)
            except NotFound as error:
                why = error.message
                await self._records.write(lambda store: self._rules.hopeless(store, row, why))
                return None
            except SealaneError as error:
                log.warning("a job waits for the registry", extra={"job": row.name, "reason": error.reason})
                return None
        return self._versions[row.name]

    def _living(self, nodes: list[NodeView]) -> list[NodeView]:
        """Nodes that are there or may come back; none while one of them has not said yet what it has."""
        states = {state.node: state for state in self._controller.fleet if state.state != DEAD}
        if any(not state.facts.attributes for state in states.values()):
            return []
        return [view for view in nodes if view.node in states]

    async def _give_up(self, row: JobRow, job: job_pb.Job, found: list[check_placement.Hopeless]) -> None:
        added = [
            job_pb.VariantCheck(
                variant_id=item.variant, load_check=variant_pb.LoadCheck(reason=item.reason, message=item.message)
            )
            for item in found
        ]
        results = self._with(job, added, "")
        await self._records.write(lambda store: self._rules.found(store, row, results))

    def _with(self, job: job_pb.Job, added: Iterable[job_pb.VariantCheck], node: str) -> bytes:
        """The job's results with these: who, for which job and when is said here, not by the worker."""
        kept = job_pb.Job(checks=job.checks)
        for item in added:
            check = kept.checks.add(variant_id=item.variant_id, load_check=item.load_check).load_check
            for field in ("runtime", "sandbox", "reason", "message"):  # of a model, by way of a node: kept short
                setattr(check, field, getattr(check, field)[:MAX_CHARACTERS])
            check.node, check.job = f"nodes/{node}" if node else "", job.name
            check.check_time.CopyFrom(time_of(self._rules.now()))
        return kept.SerializeToString()


def _left(job: job_pb.Job) -> list[str]:
    """Variants that were not loaded yet."""
    known = {item.variant_id for item in job.checks}
    return [variant for variant in job.check.variants if variant not in known]


def _id(name: str) -> str:
    return name.rpartition("/")[2]
