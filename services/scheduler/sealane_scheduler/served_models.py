"""Deployments that the compatible protocols make: one for each name and version, replaced without a gap.

What is new must serve before what is old goes, as TensorFlow Serving and Triton do it, and where it cannot, everything
is as it was before.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from google.protobuf import empty_pb2

from sealane import names
from sealane.clock import Clock
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane_scheduler import cluster
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.controller import Controller
from sealane_scheduler.creation import Creation
from sealane_scheduler.ensembles import Ensembles
from sealane_scheduler.registry_port import RegistryPort, version_number
from sealane_scheduler.store import DeploymentRow, Store, deployment_name

MAX_VERSIONS = 8
MAX_NAMES = 256
#: Longest wait for new models to serve, within the call's own deadline.
LOAD_SECONDS = 55.0
_LOOK_SECONDS = 0.2
_MODEL = "projects/*/models/*"

MayDeploy = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A name and what it is to serve: certain versions, or the latest ones.

    Args:
        name: what clients use.
        model: resource name of the model.
        versions: numbers; empty takes the `latest` ones.
        latest: how many.
        labels: label to version number.
    """

    name: str
    model: str
    versions: tuple[int, ...] = ()
    latest: int = 1
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def model_id(self) -> str:
        """Last part of the model's name."""
        return self.model.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be brought about for a project.

    Args:
        project: whose deployments.
        origin: which of them; others are never touched.
        wanted: names to serve.
        replace_all: whether other names of this origin go.
        remove: names that go.
        may_deploy: whether the caller may deploy a model id.
        actor: who asks.
        deadline: on the clock's monotonic scale.
    """

    project: str
    origin: str
    wanted: tuple[Wanted, ...]
    replace_all: bool
    remove: tuple[str, ...]
    may_deploy: MayDeploy
    actor: Actor
    deadline: float


def model_name(project: str, served_name: str, model: str) -> str:
    """Resource name of the model that a name stands for.

    Raises:
        InvalidArgument: it is neither a model's name nor its id.
        NotFound: it is another project's.
    """
    if "/" not in model:
        return f"projects/{project}/models/{names.check_id(model or served_name, 'model')}"
    owner, _ = names.parse(model, _MODEL, "model")
    if owner != project:
        raise NotFound(f"{model} does not exist, or is not yours to see; check the name")
    return model


class ServedModels:
    """Makes and removes them."""

    def __init__(
        self,
        records: Transactions[Store],
        controller: Controller,
        chains: Ensembles,
        registry: RegistryPort,
        clock: Clock,
    ) -> None:
        self._records = records
        self._controller = controller
        self._chains = chains
        self._registry = registry
        self._clock = clock
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def revision(self) -> int:
        """Revision of the routes as they are now."""
        return self._controller.changes.revision

    async def recover(self) -> None:
        """Take back what the last process was about to serve when it ended: its callers were told of no success."""
        for item in self._unfinished():
            await self._delete(Actor("scheduler", item.row.project, ""), item.row)

    async def apply(self, change: Change) -> list[str]:
        """Bring it about; returns the names of the deployments when all serve.

        Raises:
            NotFound: a model or version that is not there, or that the caller may not deploy; a name to remove that is
                not there.
            FailedPrecondition: a name is taken, a chain needs what would go, or a model cannot serve.
        """
        async with self._locks[change.project]:
            for item in self._unfinished(change.project):
                await self._delete(change.actor, item.row)  # of a call that was cut off
            present = {item.row.deployment: item for item in self._of_origin(change)}
            self._check_names(change, present)
            rows = [row for wanted in change.wanted for row in await self._rows(change, wanted)]
            gone = _gone(change, present, {row.deployment for row in rows})
            for item in gone:
                self._chains.refuse_if_needed(item.row.name)
            await self._bring_up(change, rows, present, {item.row.served_name for item in gone})
            for item in gone:
                await self._delete(change.actor, item.row)
            return [row.name for row in rows]

    async def _bring_up(
        self, change: Change, rows: list[DeploymentRow], present: Mapping[str, Deployed], replaced: set[str]
    ) -> None:
        """Create what is missing, wait until it serves, then let the names mean it; or leave nothing behind."""
        new = [row for row in rows if row.deployment not in present]
        done = False
        try:
            await self._create(change.actor, new)
            await self._until_serving(
                [row for row in rows if row in new or row.served_name in replaced], change.deadline
            )
            await self._controller.rename(rows, change.actor, self._clock.now())
            done = True
        finally:
            if not done:  # refused, cut off or broken: whatever it was, it does not keep the rest from being taken back
                await asyncio.shield(self._take_back(change.actor, new))

    async def _take_back(self, actor: Actor, rows: Iterable[DeploymentRow]) -> None:
        for row in rows:
            with contextlib.suppress(NotFound):
                await self._delete(actor, row)

    def _unfinished(self, project: str = "") -> list[Deployed]:
        """Deployments that were to be served under a name and are not yet."""
        return [
            item
            for item in self._controller.all()
            if item.row.origin and not item.row.served_name and project in ("", item.row.project)
        ]

    def _of_origin(self, change: Change) -> Iterable[Deployed]:
        return [
            item
            for item in self._controller.all()
            if item.row.project == change.project
            and item.row.origin == change.origin
            and change.may_deploy(_model_id(item.row))
        ]

    def _check_names(self, change: Change, present: Mapping[str, Deployed]) -> None:
        """Refuse names that mean something else, or that are asked for twice, or are not there to go."""
        wanted = [item.name for item in change.wanted]
        if len(set(wanted)) < len(wanted):
            raise InvalidArgument("a name is given twice; name each model once", reason="NAME_TWICE", field="models")
        if len(wanted) > MAX_NAMES:
            raise InvalidArgument(f"{len(wanted)} names, the limit is {MAX_NAMES}", field="models")
        mine = [item for item in self._controller.all() if item.row.project == change.project]
        for item in change.wanted:
            # The name stands for a model to its callers: who may not deploy a model of that name may not take it.
            if not change.may_deploy(item.name):
                raise NotFound(f"{item.name} is not yours to deploy; choose a name that begins as your models do")
            self._check_free(change, item, mine)
        served = {item.row.served_name for item in present.values()}
        others = {item.row.served_name or item.row.deployment for item in mine if item.row.origin != change.origin}
        for name in change.remove:
            if name in others:
                raise _taken(name)
            if name not in served:
                raise NotFound(f"model {name!r} is not loaded; list the models first", reason="MODEL_NOT_FOUND")

    def _check_free(self, change: Change, wanted: Wanted, mine: Iterable[Deployed]) -> None:
        """Refuse a name that a deployment, a chain or another model's callers know, whoever may see them."""
        name = wanted.name
        if self._chains.get(deployment_name(change.project, name)) is not None:
            raise _taken(name)
        for item in mine:
            row, model = item.row, _model_id(item.row)
            if row.deployment == name or (row.served_name == name and row.origin != change.origin):
                raise _taken(name)
            if row.served_name == name and model != wanted.model_id:
                raise FailedPrecondition(
                    f"{name!r} serves another model, and a name keeps its model while it is served; remove it first",
                    reason="NAME_OF_ANOTHER_MODEL",
                )
            if model == name and model != wanted.model_id:
                raise FailedPrecondition(
                    f"{name!r} is the id of another model that is deployed; choose another name", reason="NAME_TAKEN"
                )

    async def _rows(self, change: Change, wanted: Wanted) -> list[DeploymentRow]:
        if not change.may_deploy(wanted.model_id):
            raise NotFound(f"{wanted.model} does not exist, or is not yours to deploy; check the name")
        versions = await asyncio.to_thread(self._versions, wanted)
        numbers = {version_number(version.name) for version in versions}
        for label, number in wanted.labels.items():
            if number not in numbers:
                raise FailedPrecondition(
                    f"label {label!r} is for version {number} of {wanted.name}, which is not served; serve it first",
                    reason="LABEL_UNAVAILABLE",
                )
        return [self._row(change, wanted, version) for version in versions]

    def _versions(self, wanted: Wanted) -> list[model_pb.Version]:
        if wanted.versions:
            return [self._registry.version(f"{wanted.model}/versions/{number}") for number in wanted.versions]
        versions = self._registry.latest(wanted.model, wanted.latest)
        if not versions:
            raise NotFound(f"{wanted.model} has no version; push one with 'sealane models push'")
        return [self._registry.version(version.name) for version in versions]

    def _row(self, change: Change, wanted: Wanted, version: model_pb.Version) -> DeploymentRow:
        number, now = version_number(version.name), self._clock.now()
        return DeploymentRow(
            project=change.project,
            deployment=f"{wanted.name}-v{number}",
            model_version=version.name,
            demand=b"",
            version=version.SerializeToString(),
            create_time=now,
            update_time=now,
            etag=secrets.token_hex(8),
            served_name=wanted.name,
            origin=change.origin,
            labels=",".join(sorted(label for label, of in wanted.labels.items() if of == number)),
        )

    async def _create(self, actor: Actor, rows: Iterable[DeploymentRow]) -> None:
        # Not under their name yet: it goes on meaning what it did until all of them serve.
        nameless = [replace(row, served_name="", labels="") for row in rows]
        if nameless:
            await self._controller.create(Creation(nameless, actor, lambda _: empty_pb2.Empty()))

    async def _delete(self, actor: Actor, row: DeploymentRow) -> None:
        await self._controller.delete(row.name, "", partial(_drop, row=row, actor=actor, now=self._clock.now()))

    async def _until_serving(self, rows: Iterable[DeploymentRow], deadline: float) -> None:
        """Wait until all serve.

        Raises:
            FailedPrecondition: one cannot, or does not in time.
        """
        until = min(deadline, self._clock.monotonic() + LOAD_SECONDS)
        waiting = [item for row in rows if (item := self._controller.get(row.name)) is not None]
        while True:
            waiting = [item for item in waiting if not item.serving(self._controller.fleet)]
            if not waiting:
                return
            for item in waiting:
                _refuse_if_hopeless(item)
            if self._clock.monotonic() >= until:
                raise FailedPrecondition(
                    f"{waiting[0].row.deployment} does not serve yet; nothing was changed, allow more time",
                    reason="LOAD_TIMEOUT",
                )
            changes = self._controller.changes
            await changes.after(changes.revision, _LOOK_SECONDS)


def _gone(change: Change, present: Mapping[str, Deployed], kept: set[str]) -> list[Deployed]:
    """What is there and is not wanted any more."""
    named = {*change.remove, *(wanted.name for wanted in change.wanted)}
    return [
        item
        for item in present.values()
        if (change.replace_all or item.row.served_name in named) and item.row.deployment not in kept
    ]


def _taken(name: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"deployment {name!r} was made otherwise and is not changed this way; delete it with "
        "'sealane deployments delete', or choose another name",
        reason="NAME_TAKEN",
    )


def _refuse_if_hopeless(item: Deployed) -> None:
    if item.refusal is not None and item.refusal.binding_constraint:
        raise FailedPrecondition(
            f"no worker can serve {item.row.deployment}: {item.refusal.unavailable_reason}; nothing was changed",
            reason=item.refusal.binding_constraint.upper(),
        )
    failed = next((copy for copy in item.copies if copy.state == cluster.FAILED), None)
    if failed is not None:
        raise FailedPrecondition(
            f"{item.row.deployment} cannot be loaded: {failed.message}; nothing was changed", reason="LOAD_FAILED"
        )


def _model_id(row: DeploymentRow) -> str:
    return row.model_version.split("/")[3]


def _drop(store: Store, row: DeploymentRow, actor: Actor, now: float) -> None:
    store.drop_deployment(row.project, row.deployment)
    store.record(actor, "DeleteDeployment", row.name, now, origin=row.origin)
