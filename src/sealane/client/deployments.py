"""Deployments: keep a version serving under a demand, and say why it runs where it does."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Unpack

from sealane import ensemble_messages
from sealane.client import references
from sealane.client.demand import DemandFields, demand
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.ensembles import Chain, Step
from sealane.errors import Unavailable
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import deployment_service_pb2_grpc, placement_service_pb2, placement_service_pb2_grpc

PlacedCopies = placement_service_pb2.PlaceResponse.Placed

_FIRST_POLL_SECONDS = 0.05
_LAST_POLL_SECONDS = 0.5
_OPTIMIZE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Placeable:
    """A deployment for :meth:`Deployments.place`.

    Args:
        deployment: its id.
        model_version: ``digits@3``, ``digits@production`` or the full name; an alias is resolved once.
        demands: what it needs and wants.
    """

    deployment: str
    model_version: str
    demands: DemandFields = field(default_factory=DemandFields)


class Deployments:
    """The deployments of the project."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, deployment: str, model_version: str, **demands: Unpack[DemandFields]) -> pb.Deployment:
        """Create a deployment. It is accepted even where nothing can run it now; see :meth:`wait`.

        Args:
            deployment: its id.
            model_version: ``digits@3``, ``digits@production`` or the full name; an alias is resolved once.
            demands: see :class:`~sealane.client.demand.DemandFields`.
        """
        request = pb.CreateDeploymentRequest(
            parent=self._session.parent,
            deployment_id=deployment,
            deployment=pb.Deployment(
                model_version=references.version(self._session.project, model_version), demand=demand(demands)
            ),
            request_id=str(uuid.uuid4()),
        )
        return self._stub().CreateDeployment(request, timeout=self._session.timeout)

    def place(self, items: Sequence[Placeable], *, gang: bool = False, request_id: str = "") -> Sequence[PlacedCopies]:
        """Create up to 64 deployments and place them, all in one commit.

        Args:
            items: the deployments.
            gang: place all of them whole, or create nothing.
            request_id: UUID that makes a repeat safe across processes; default: a new one.

        Returns:
            What was decided about each, in the same order: nodes, variants and epochs of its copies, and what holds it
            back where it has none.

        Raises:
            FailedPrecondition: a gang that does not fit; `metadata["constraint"]` says what binds.
            AlreadyExists: an id is taken; nothing was created.
        """
        request = placement_service_pb2.PlaceRequest(
            parent=self._session.parent,
            items=[
                placement_service_pb2.PlaceRequest.Item(
                    deployment_id=item.deployment,
                    model_version=references.version(self._session.project, item.model_version),
                    demand=demand(item.demands),
                )
                for item in items
            ],
            gang=gang,
            request_id=request_id or str(uuid.uuid4()),
        )
        return self._placements().Place(request, timeout=self._session.timeout).placed

    def create_chain(self, deployment: str, steps: Sequence[Step], outputs: Sequence[str] = ()) -> pb.Deployment:
        """Create a deployment that chains models; they are deployments that are there.

        Args:
            deployment: its id.
            steps: the models, and which tensors go from one to the next.
            outputs: tensors that callers get; empty for those that no step takes.

        Raises:
            InvalidArgument: the steps do not fit together; the message says where.
            NotFound: a deployment that is not there.
        """
        request = pb.CreateDeploymentRequest(
            parent=self._session.parent,
            deployment_id=deployment,
            deployment=pb.Deployment(ensemble=ensemble_messages.message_of(Chain(tuple(steps), tuple(outputs)))),
            request_id=str(uuid.uuid4()),
        )
        return self._stub().CreateDeployment(request, timeout=self._session.timeout)

    def get(self, deployment: str) -> pb.Deployment:
        """A deployment by its id or full name."""
        return self._stub().GetDeployment(
            pb.GetDeploymentRequest(name=self._name(deployment)), timeout=self._session.timeout
        )

    def list(self) -> Iterator[pb.Deployment]:
        """All deployments, by name."""

        def fetch(token: str) -> pb.ListDeploymentsResponse:
            request = pb.ListDeploymentsRequest(parent=self._session.parent, page_token=token)
            return self._stub().ListDeployments(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.deployments)

    def delete(self, deployment: str, *, etag: str = "") -> None:
        """Delete a deployment; its copies stop. With `etag` only as it was seen."""
        request = pb.DeleteDeploymentRequest(name=self._name(deployment), etag=etag)
        self._stub().DeleteDeployment(request, timeout=self._session.timeout)

    def wait(
        self,
        deployment: str,
        timeout: float = 60.0,
        on_change: Callable[[pb.Deployment], None] = lambda deployment: None,
    ) -> pb.Deployment:
        """Wait until a deployment serves.

        Args:
            deployment: its id or full name.
            timeout: seconds to wait.
            on_change: called with the deployment now and whenever it has changed.

        Raises:
            Unavailable: it does not serve in time; the message names the binding constraint and the
                reasons, `metadata["constraint"]` the constraint alone.
        """
        deadline, pause, etag = time.monotonic() + timeout, _FIRST_POLL_SECONDS, ""
        while True:
            found = self.get(deployment)
            if found.etag != etag:
                etag = found.etag
                on_change(found)
            if found.state == pb.Deployment.STATE_SERVING:
                return found
            if time.monotonic() + pause >= deadline:
                raise not_serving(found, timeout)
            time.sleep(pause)
            pause = min(2 * pause, _LAST_POLL_SECONDS)

    def explain(self, deployment: str) -> Sequence[pb.Decision]:
        """The decisions about a deployment, newest first: reasons, rejections, scores."""
        request = placement_service_pb2.ExplainRequest(deployment=self._name(deployment))
        return self._placements().Explain(request, timeout=self._session.timeout).decisions

    def plan(self, model_version: str, **demands: Unpack[DemandFields]) -> pb.Decision:
        """What :meth:`create` would choose now, without doing it."""
        request = placement_service_pb2.PlanRequest(
            parent=self._session.parent,
            model_version=references.version(self._session.project, model_version),
            demand=demand(demands),
        )
        return self._placements().Plan(request, timeout=self._session.timeout)

    def plan_task(self, runtime: str = "", **demands: Unpack[DemandFields]) -> pb.Decision:
        """Which node a task of a job would go to now.

        Args:
            runtime: what it needs there, such as ``tensorflow``; empty for any.
            demands: see :class:`~sealane.client.demand.DemandFields`.
        """
        request = placement_service_pb2.PlanRequest(
            parent=self._session.parent, runtime=runtime, demand=demand(demands)
        )
        return self._placements().Plan(request, timeout=self._session.timeout)

    def optimize(self, max_moves: int = 0, *, apply: bool = False) -> placement_service_pb2.OptimizeResponse:
        """Better places for all serving copies of the project, found together.

        Args:
            max_moves: copies that may move; 0 means 10.
            apply: move them; each old copy stops once the new one serves.
        """
        request = placement_service_pb2.OptimizeRequest(parent=self._session.parent, max_moves=max_moves, apply=apply)
        return self._placements().Optimize(request, timeout=max(self._session.timeout, _OPTIMIZE_SECONDS))

    def _name(self, deployment: str) -> str:
        return references.resource(self._session.project, "deployments", deployment)

    def _stub(self) -> deployment_service_pb2_grpc.DeploymentServiceStub:
        return deployment_service_pb2_grpc.DeploymentServiceStub(self._session.channel("scheduler"))

    def _placements(self) -> placement_service_pb2_grpc.PlacementServiceStub:
        return placement_service_pb2_grpc.PlacementServiceStub(self._session.channel("scheduler"))


def not_serving(deployment: pb.Deployment, seconds: float) -> Unavailable:
    """Why a deployment does not serve, in one error."""
    state = pb.Deployment.State.Name(deployment.state).removeprefix("STATE_")
    decision = deployment.decision
    causes = [f"{item.node}: {item.message}" for item in deployment.placements if item.message]
    causes += [f"{item.node} {item.variant} fails {item.filter}: {item.detail}" for item in decision.rejections]
    constraint = decision.binding_constraint
    what = f"{references.last(deployment.name)} is {state} after {seconds:g} s"
    if constraint:
        what += f", held back by {constraint}"
    because = f" ({'; '.join(causes)})" if causes else ""
    return Unavailable(
        f"{what}{because}; see 'sealane deployments explain {references.last(deployment.name)}'",
        reason=constraint.upper() or "NOT_SERVING",
        constraint=constraint,
        state=state,
    )
