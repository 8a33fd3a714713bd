"""Chains of models: made of deployments that are there, and served where these are.

A chain has no copies of its own. It is routed to the workers that serve all of its models, and where there is none,
gateways go from worker to worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sealane import ensemble_messages, ensembles
from sealane.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.tensors import Signature
from sealane_scheduler.cluster import Copy, Deployed
from sealane_scheduler.controller import Controller
from sealane_scheduler.filters import VariantView
from sealane_scheduler.store import EnsembleRow, Store, deployment_name


@dataclass(slots=True)
class Chained:
    """A chain that is there."""

    row: EnsembleRow
    message: pb.Ensemble
    members: dict[str, str]
    """Resource name of each deployment -> version that the chain was checked with."""


class Ensembles:
    """All chains; used on the event loop alone."""

    def __init__(self, records: Transactions[Store], controller: Controller) -> None:
        self._records = records
        self._controller = controller
        self._chains: dict[str, Chained] = {}

    async def load(self) -> None:
        """Take up where the last process stopped."""
        for row in await self._records.read(lambda store: store.ensembles()):
            self._chains[row.name] = _chained(row)

    def all(self) -> list[Chained]:
        """All chains, by name."""
        return [self._chains[name] for name in sorted(self._chains)]

    def get(self, name: str) -> Chained | None:
        """A chain by its resource name."""
        return self._chains.get(name)

    def add(self, row: EnsembleRow) -> Chained:
        """A chain was created."""
        chained = self._chains.setdefault(row.name, _chained(row))
        self._controller.changes.announce()
        return chained

    def check(self, project: str, message: pb.Ensemble) -> pb.Ensemble:
        """The chain with what is found out about it.

        Raises:
            InvalidArgument: it cannot run; the message says where it is wrong.
            NotFound: a deployment that is not there.
        """
        chain = ensemble_messages.chain_of(message)
        signatures: dict[str, Signature] = {}
        models: set[str] = set()
        versions: list[str] = []
        for step in chain.steps:
            item = self._controller.get(deployment_name(project, step.deployment))
            if item is None:
                raise NotFound(
                    f"deployment {step.deployment!r} does not exist, or is not yours to see, or is itself a chain; "
                    "list them with 'sealane deployments list'"
                )
            signatures[step.deployment] = _default_signature(step.deployment, item)
            models.add(item.row.model_version.split("/")[3])
            versions.append(item.row.model_version)
        checked = ensemble_messages.message_of(chain)
        signature = ensembles.signature_of(chain, signatures)
        checked.signature.CopyFrom(ensemble_messages.signature_message(signature))
        checked.models.extend(sorted(models))
        checked.model_versions.extend(versions)
        return checked

    async def delete(self, name: str, etag: str, drop: Callable[[Store], None]) -> None:
        """Delete a chain.

        Raises:
            NotFound: somebody else deleted it.
            Aborted: it has another etag.
        """
        chained = self._chains.get(name)
        if chained is None:
            raise NotFound(f"{name} does not exist any more")
        if etag and etag != chained.row.etag:
            raise Aborted("the chain has changed since it was read; read it again", reason="ETAG_MISMATCH")
        await self._records.write(drop)
        self._chains.pop(name, None)
        self._controller.changes.announce()

    def refuse_if_needed(self, deployment: str) -> None:
        """Raise FailedPrecondition where a chain needs a deployment."""
        users = [chained.row.deployment for chained in self.all() if deployment in chained.members]
        if users:
            raise FailedPrecondition(
                f"{deployment} is part of the chain {', '.join(users)}; delete that first", reason="PART_OF_ENSEMBLE"
            )

    def nodes(self, chained: Chained) -> dict[str, Copy]:
        """Workers that serve all models of a chain, each with its copy of the first one."""
        serving = [self._serving(name, version) for name, version in chained.members.items()]
        common = set(serving[0]).intersection(*serving[1:])
        return {node: serving[0][node] for node in sorted(common)}

    def variants(self, chained: Chained, node: str) -> dict[str, VariantView]:
        """Id of each deployment of a chain -> the variant that serves it on a node; those that are there."""
        found = {}
        for name, version in chained.members.items():
            item, copy = self._member(name, version), self._serving(name, version).get(node)
            variant = item.variant(copy.row.variant) if item is not None and copy is not None else None
            if variant is not None:
                found[name.rpartition("/")[2]] = variant
        return found

    def digest(self, chained: Chained, node: str) -> str:
        """What a node runs for a chain; see :func:`sealane.ensembles.digest_of`."""
        variants = {name: variant.digest for name, variant in self.variants(chained, node).items()}
        return ensembles.digest_of(ensemble_messages.chain_of(chained.message), variants)

    def sealing_required(self, chained: Chained) -> bool:
        """Whether the owner of one of its models refuses plaintext."""
        items = (self._member(name, version) for name, version in chained.members.items())
        return any(item.sealing_required for item in items if item is not None)

    def unserved(self, chained: Chained) -> Deployed | None:
        """A model of the chain that no worker serves now; None where all are served somewhere."""
        for name, version in chained.members.items():
            if not self._serving(name, version):
                return self._controller.get(name)
        return None

    def state(self, chained: Chained) -> str:
        """State of the chain: that of the model that is furthest from serving."""
        order = ("PENDING", "DEGRADED", "PREPARING", "SERVING")
        items = [self._member(name, version) for name, version in chained.members.items()]
        states = ["PENDING" if item is None else item.state(self._controller.fleet) for item in items]
        return min(states, key=order.index)

    def served_by(self, assigned: Iterable[str]) -> list[Chained]:
        """Chains whose models are all among these deployments."""
        names = set(assigned)
        return [
            chained
            for chained in self.all()
            if names.issuperset(chained.members)
            and all(self._member(name, version) for name, version in chained.members.items())
        ]

    def _member(self, deployment: str, version: str) -> Deployed | None:
        """A deployment, unless another model has taken its name since the chain was checked."""
        item = self._controller.get(deployment)
        return item if item is not None and item.row.model_version == version else None

    def _serving(self, deployment: str, version: str) -> Mapping[str, Copy]:
        item = self._member(deployment, version)
        return {} if item is None else {copy.row.node: copy for copy in item.serving(self._controller.fleet)}


def _default_signature(deployment: str, item: Deployed) -> Signature:
    found = {
        message.name: ensemble_messages.signature_of(message)
        for message in model_pb.Version.FromString(item.row.version).signatures
    }
    signature = found.get(ensembles.DEFAULT_SIGNATURE) or (next(iter(found.values())) if len(found) == 1 else None)
    if signature is None:
        raise InvalidArgument(
            f"the model of {deployment!r} has no signature {ensembles.DEFAULT_SIGNATURE!r}; a chain runs that one",
            reason="ENSEMBLE_INVALID",
            field="ensemble.steps",
        )
    return signature


def _chained(row: EnsembleRow) -> Chained:
    message = pb.Ensemble.FromString(row.ensemble)
    names = (deployment_name(row.project, step.deployment) for step in message.steps)
    return Chained(row, message, dict(zip(names, message.model_versions, strict=True)))
