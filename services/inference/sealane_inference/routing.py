"""Routes as plain values, what a name means among them, and which worker gets the next call. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sealane.errors import Unavailable
from sealane.protocols import naming
from sealane.protocols.call import Target


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


@dataclass(frozen=True, slots=True)
class Route:
    """The workers of one deployment, or why there are none.

    `constraint` names what forbids every placement; empty while a placement may still come.
    """

    project: str
    deployment: str
    model: str
    version: str
    endpoints: tuple[Endpoint, ...] = ()
    unavailable_reason: str = ""
    constraint: str = ""

    @property
    def name(self) -> str:
        """Resource name of the deployment."""
        return f"projects/{self.project}/deployments/{self.deployment}"


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes at one revision, by project and deployment id."""

    revision: int = 0
    routes: Mapping[str, Mapping[str, Route]] = field(default_factory=dict)

    @classmethod
    def of(cls, revision: int, routes: Iterable[Route]) -> RouteTable:
        """A table of these routes."""
        by_project: defaultdict[str, dict[str, Route]] = defaultdict(dict)
        for route in routes:
            by_project[route.project][route.deployment] = route
        return cls(revision, dict(by_project))


def resolve(table: RouteTable, project: str, target: Target) -> Route | None:
    """The route that `target` means in a project; None where the model, version or label is not there.

    A deployment serves one version, so a version is a check and never a choice. Labels are the
    registry's aliases, which a deployment has followed already; none can be asked for here.

    Raises:
        FailedPrecondition: a model id with several deployments.
    """
    routes = table.routes.get(project, {})
    deployment = naming.resolve(target.model, {route.deployment: route.model for route in routes.values()})
    if deployment is None or target.label:
        return None
    route = routes[deployment]
    return None if target.version and target.version != route.version else route


class Costs(Protocol):
    """What a call to a node is expected to cost."""

    def of(self, node: str) -> float:
        """Expected seconds, including those of the calls before it."""
        ...


def pick(endpoints: Sequence[Endpoint], costs: Costs, choose: Callable[[Sequence[Endpoint]], Endpoint]) -> Endpoint:
    """The cheapest endpoint; `choose` breaks ties, so that equals share the load."""
    if len(endpoints) == 1:
        return endpoints[0]
    priced = [(costs.of(endpoint.node), endpoint) for endpoint in endpoints]
    least = min(price for price, _ in priced)
    return choose([endpoint for price, endpoint in priced if price == least])


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
