"""Which workers serve a deployment: a lease that is refreshed in time and holds while nobody answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sealane.client import references
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.errors import NotFound, SealaneError, Unavailable
from sealane.protocols import naming
from sealane.rpc.channel import Target
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.scheduler.v1 import deployment_service_pb2_grpc, routing_service_pb2_grpc
from sealane.scheduler.v1 import routing_service_pb2 as pb

_REFRESH_SECONDS = 2.0
_AWAY_SECONDS = 5.0
#: The same where the lease leads nowhere, so that every call waits for a better one.
_MOVED_SECONDS = 0.5


@dataclass(slots=True)
class _Entry:
    """The lease of one model name."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    lease: pb.RoutingLease | None = None
    retry: float = 0.0
    """Seconds since 1970 before which a failed refresh is not tried again."""
    moved: bool = False
    """Whether the workers of the lease did not answer."""


class Routes:
    """Routing leases by the name that callers use."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()

    def targets(self, model: str, timeout: float) -> dict[str, Target]:
        """The workers that serve `model` now, by their node ids.

        Raises:
            NotFound: no deployment of that name.
            Unavailable: no worker serves it; `metadata["constraint"]` says what forbids it.
        """
        route = self._lease(model, timeout).route
        if not route.endpoints:
            # Nothing to hold on to: whoever asks next wants to know whether somebody serves it by then.
            self.expire(model)
            constraint = route.binding_constraint
            why = route.unavailable_reason or constraint or "a substitute is being placed"
            raise Unavailable(
                f"deployment {references.last(route.deployment)!r} has no worker: {why}",
                reason=constraint.upper() or "NO_WORKER",
                constraint=constraint,
            )
        bundle = self._session.site.trust_bundle
        return {item.node: Target(item.address, bundle, item.tls_name) for item in route.endpoints}

    def expire(self, model: str) -> None:
        """Resolve anew before the next call: the workers of the lease did not answer."""
        self._entry(model).moved = True

    def _lease(self, model: str, timeout: float) -> pb.RoutingLease:
        entry, now = self._entry(model), time.time()
        lease = entry.lease
        if lease is None or now >= lease.expire_time.ToNanoseconds() / 1e9:
            with entry.lock:
                return self._refresh(entry, model, timeout)
        if now < entry.retry or (now < lease.refresh_time.ToNanoseconds() / 1e9 and not entry.moved):
            return lease
        if entry.lock.acquire(blocking=False):
            if entry.moved:
                return self._refresh_or(lease, entry, model)
            # The lease still holds, so no call waits for its refresh.
            threading.Thread(target=self._refresh_or, args=(lease, entry, model), daemon=True).start()
        return lease

    def _refresh_or(self, lease: pb.RoutingLease, entry: _Entry, model: str) -> pb.RoutingLease:
        """A fresh lease, or the present one while the scheduler is away; gives back the entry's lock."""
        try:
            return self._refresh(entry, model, _REFRESH_SECONDS)
        except (SealaneError, ValueError) as error:  # ValueError: the client was closed meanwhile
            if entry.moved and isinstance(error, NotFound):
                raise  # deleted, and its workers say so too
            entry.retry = time.time() + (_MOVED_SECONDS if entry.moved else _AWAY_SECONDS)
            return lease
        finally:
            entry.lock.release()

    def _refresh(self, entry: _Entry, model: str, timeout: float) -> pb.RoutingLease:
        stub = routing_service_pb2_grpc.RoutingServiceStub(self._session.channel("scheduler"))
        name = self._names.get(model) or references.resource(self._session.project, "deployments", model)
        try:
            lease = stub.ResolveRoute(pb.ResolveRouteRequest(deployment=name), timeout=timeout)
        except NotFound:
            self._names.pop(model, None)
            name = self._of_model(model)
            lease = stub.ResolveRoute(pb.ResolveRouteRequest(deployment=name), timeout=timeout)
            self._names[model] = name
        entry.lease, entry.retry, entry.moved = lease, 0.0, False
        return lease

    def _of_model(self, model: str) -> str:
        """The one deployment of a model of that id."""
        stub = deployment_service_pb2_grpc.DeploymentServiceStub(self._session.channel("scheduler"))

        def fetch(token: str) -> deployment_pb.ListDeploymentsResponse:
            request = deployment_pb.ListDeploymentsRequest(parent=self._session.parent, page_token=token)
            return stub.ListDeployments(request, timeout=self._session.timeout)

        found: Sequence[deployment_pb.Deployment] = list(pages(fetch, lambda page: page.deployments))
        models = {references.last(item.name): item.model_version.split("/")[3] for item in found}
        meant = naming.resolve(model, models)
        if meant is None:
            raise NotFound(f"{model!r} is no deployment; list them with 'sealane deployments list'")
        return references.resource(self._session.project, "deployments", meant)

    def _entry(self, model: str) -> _Entry:
        with self._lock:
            return self._entries.setdefault(model, _Entry())
