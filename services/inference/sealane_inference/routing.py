"""Routes as plain values, what a name means among them, and which worker gets the next call. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sealane.ensembles import Chain
from sealane.errors import Unavailable
from sealane.protocols import naming
from sealane.protocols.call import Target
from sealane.rpc.affinity import weight
from sealane.security.sealing_policy import SealingPolicy
from sealane.tensors import Signature


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One worker that serves a deployment; `key_id` is that of its sealing statement."""

    node: str
    epoch: int
    address: str = ""
    tls_name: str = ""
    variant_digest: str = ""
    statement: str = ""
    key_id: str = ""
    policies: tuple[SealingPolicy, ...] = ()
    """What the owners of its models demand of sealing: passed on to clients as it came."""


@dataclass(frozen=True, slots=True)
class ChainRoute:
    """What a route of a chain has beside others: the chain, what callers send and get, the ids of its models."""

    chain: Chain
    signature: Signature
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """The workers of one deployment, or why there are none.

    `constraint` names what forbids every placement; empty while a placement may still come. `served_name` is a name of
    several versions, each a route of its own, and `labels` are those of this version under it.
    """

    project: str
    deployment: str
    model: str
    version: str
    endpoints: tuple[Endpoint, ...] = ()
    unavailable_reason: str = ""
    constraint: str = ""
    served_name: str = ""
    labels: tuple[str, ...] = ()
    chain: ChainRoute | None = None
    sealing_required: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """Ids of the models that it runs."""
        return (self.model,) if self.chain is None else self.chain.models

    @property
    def name(self) -> str:
        """Resource name of the deployment."""
        return f"projects/{self.project}/deployments/{self.deployment}"


@dataclass(frozen=True, slots=True)
class Names:
    """What names of one project mean: made once for a table, because each call asks."""

    served: Mapping[str, tuple[Route, ...]]
    """A served name -> its versions: those with a worker first, then by their number, the highest first."""
    models: Mapping[str, tuple[str, ...]]
    """Id of a model -> ids of its deployments."""

    @classmethod
    def of(cls, routes: Iterable[Route]) -> Names:
        """The names of these routes."""
        served: defaultdict[str, list[Route]] = defaultdict(list)
        models: defaultdict[str, list[str]] = defaultdict(list)
        for route in routes:
            models[route.model].append(route.deployment)
            if route.served_name:
                served[route.served_name].append(route)
        versions = {
            name: tuple(sorted(found, key=lambda route: (not route.endpoints, -int(route.version))))
            for name, found in served.items()
        }
        return cls(versions, {model: tuple(sorted(found)) for model, found in models.items()})


_NO_NAMES = Names({}, {})


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes at one revision, by project and deployment id."""

    revision: int = 0
    routes: Mapping[str, Mapping[str, Route]] = field(default_factory=dict)
    names: Mapping[str, Names] = field(default_factory=dict)
    has_chains: bool = False

    def changed(self, revision: int, routes: Iterable[Route], removed: Iterable[tuple[str, str]]) -> RouteTable:
        """The table with some routes new or otherwise, and some gone.

        Args:
            revision: of the new table.
            routes: those that are new or changed.
            removed: project and deployment of those that are gone.
        """
        routes, removed = list(routes), list(removed)
        concerned = {route.project for route in routes} | {project for project, _ in removed}
        changed = {project: dict(self.routes.get(project, {})) for project in concerned}
        for project, deployment in removed:
            changed[project].pop(deployment, None)
        for route in routes:
            changed[route.project][route.deployment] = route
        every = {project: found for project, found in {**self.routes, **changed}.items() if found}
        names = {
            project: Names.of(found.values()) if project in concerned else self.names[project]
            for project, found in every.items()
        }
        has_chains = any(route.chain is not None for found in every.values() for route in found.values())
        return RouteTable(revision, every, names, has_chains)

    @classmethod
    def of(cls, revision: int, routes: Iterable[Route]) -> RouteTable:
        """A table of these routes."""
        by_project: defaultdict[str, dict[str, Route]] = defaultdict(dict)
        has_chains = False
        for route in routes:
            by_project[route.project][route.deployment] = route
            has_chains |= route.chain is not None
        names = {project: Names.of(found.values()) for project, found in by_project.items()}
        return cls(revision, dict(by_project), names, has_chains)


def resolve(
    table: RouteTable, project: str, target: Target, may: Callable[[Route], bool] = lambda route: True
) -> Route | None:
    """The route that `target` means in a project; None where the model, version or label is not there.

    A deployment serves one version, so a version is a check and not a choice; a served name has several versions, of
    which the one that is asked for is meant, by its number or its label, and else the highest that is available. What
    the caller may not use is not there for him, in what is meant and in what an error names.

    Raises:
        FailedPrecondition: a model id with several deployments.
    """
    names = table.names.get(project, _NO_NAMES)
    named = names.served.get(target.model)
    if named:
        return next((route for route in named if _is_wanted(route, target) and may(route)), None)
    routes = table.routes.get(project, {})
    route = routes.get(target.model)
    if route is None:
        of_model = [name for name in names.models.get(target.model, ()) if may(routes[name])]
        deployment = naming.only(target.model, of_model)
        route = routes[deployment] if deployment is not None else None
    if route is None or target.label or not may(route):
        return None
    return None if target.version and target.version != route.version else route


def versions(table: RouteTable, project: str, name: str) -> tuple[Route, ...]:
    """The versions of a served name; none where it is none."""
    return table.names.get(project, _NO_NAMES).served.get(name, ())


def _is_wanted(route: Route, target: Target) -> bool:
    if target.label:
        return target.label in route.labels
    return target.version in ("", route.version)


def keeper(endpoints: Sequence[Endpoint], key: str) -> Endpoint | None:
    """The endpoint that keeps what belongs to `key`: the same while it is there (rendezvous hashing, Thaler 1996)."""
    return max(endpoints, key=lambda endpoint: weight(endpoint.node, key), default=None)


def refusal(route: Route) -> Unavailable | None:
    """The answer for a route that no worker can serve; None while one does or may soon."""
    if route.endpoints or not route.constraint:
        return None
    return Unavailable(
        f"deployment {route.deployment!r} has no worker: {route.unavailable_reason or route.constraint}; "
        "bring back a worker that satisfies it, or change the deployment's demand",
        reason=route.constraint.upper(),
        constraint=route.constraint,
    )
