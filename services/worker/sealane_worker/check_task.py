"""The load-check task: each variant once in its box, and what came of it told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sealane.ensemble_messages import signature_of
from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.registry.v1 import variant_service_pb2 as registry
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import job_service_pb2
from sealane.tensors import Signature
from sealane.type.v1 import tensor_pb2
from sealane_worker.declared import difference
from sealane_worker.load_check import LoadCheck, check
from sealane_worker.offer import Offered
from sealane_worker.preparation import Preparation, project_of
from sealane_worker.runner import Progress, Results
from sealane_worker.spec import HostPolicy

#: Most that is told of why a variant cannot be loaded: the words may be the model's own.
MAX_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class CheckWork:
    """Does load-check tasks.

    Attributes:
        prepare: gets files, under the same conditions as those of what is served.
        offers: runtimes that this worker offers.
        policy: what its operator allows models.
    """

    prepare: Preparation
    offers: Mapping[str, Offered]
    policy: HostPolicy

    def __call__(self, task: pb.TaskAssignment, progress: Progress) -> Results:
        """Check what this worker has a runtime for; as :data:`sealane_worker.runner.Work` says."""
        mine = [item for item in task.check.variants if self._has_runtime(item.variant)]
        found: Results = []
        for done, item in enumerate(mine):
            name = item.variant.name.rpartition("/")[2]
            progress.tell(done / len(mine), f"loading {name}")
            result = self._check(item, project_of(task.task), task.check.signatures)
            found.append(job_service_pb2.VariantCheck(variant_id=name, load_check=_message(result)))
        progress.check()
        return found

    def _has_runtime(self, variant: registry.Variant) -> bool:
        """As the scheduler decides it: formats that hold code count only where they are offered."""
        wanted = _format_of(variant)
        return any(wanted in offer.formats and variant.runtime in ("", name) for name, offer in self.offers.items())

    def _check(self, item: pb.CheckedVariant, project: str, signatures: Iterable[tensor_pb2.Signature]) -> LoadCheck:
        """Load one; that a variant is refused is a result, that its files cannot be had is not."""
        variant, declared = item.variant, [signature_of(each) for each in signatures]

        def accept(told: tuple[Signature, ...]) -> None:
            if found := difference(declared, told, converted=bool(variant.source_variant)):
                raise FailedPrecondition(found, reason="SIGNATURES_DIFFER")

        try:
            held = self.prepare.fetch(variant, project, item.grant)
        except (FailedPrecondition, InvalidArgument) as error:
            return LoadCheck(False, kind=error.kind, reason=error.reason, message=error.message)
        infos = {name: offer.info for name, offer in self.offers.items()}
        with held as folder:
            return check(folder, _format_of(variant), variant.runtime, self.policy, runtimes=infos, accept=accept)


def _format_of(variant: registry.Variant) -> str:
    known = variant.format in registry.Format.values()
    return registry.Format.Name(variant.format).removeprefix("FORMAT_") if known else ""


def _message(found: LoadCheck) -> registry.LoadCheck:
    return registry.LoadCheck(
        loadable=found.loadable,
        runtime=found.runtime,
        sandbox=found.sandbox,
        load_seconds=found.load_seconds,
        memory_bytes=found.memory_bytes,
        warmed_requests=found.warmed_requests,
        reason=found.reason,
        message=found.message[:MAX_CHARACTERS],
    )
