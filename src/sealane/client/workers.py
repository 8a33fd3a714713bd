"""Calls straight to the workers of a routing lease: to the cheapest, or to the one that keeps a key."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Sequence

from sealane.client import calls
from sealane.client.calls import Caller, Place, Request
from sealane.client.hedges import Slowness
from sealane.client.routes import Routes
from sealane.client.session import Session
from sealane.clock import SystemClock
from sealane.errors import MODEL_CRASHED, ResourceExhausted, SealaneError, Unavailable
from sealane.rpc import choice
from sealane.rpc.affinity import bounded, key_of
from sealane.rpc.loads import NodeLoads
from sealane.rpc.transport import OWN_LIMITS

#: A worker's answers that mean the lease is old: the deployment runs elsewhere by now.
_MOVED = frozenset({"MODEL_NOT_FOUND", "DEPLOYMENT_NOT_SERVED"})


class Workers:
    """Runs attempts at workers; may be used from any thread."""

    def __init__(self, session: Session, caller: Caller) -> None:
        self._session = session
        self._caller = caller
        self._routes = Routes(session)
        self._loads: dict[str, NodeLoads] = {}
        self._slowness: dict[str, Slowness] = {}
        self._lock = threading.Lock()

    def slowness(self, model: str) -> Slowness:
        """How long direct answers of a model take."""
        with self._lock:
            return self._slowness.setdefault(model, Slowness())

    def loads(self, model: str) -> NodeLoads:
        """What is known of the workers of a model, by their node ids."""
        with self._lock:
            return self._loads.setdefault(model, NodeLoads(SystemClock()))

    def send(self, model: str, request: Request, deadline: float, *, hedge: float = 0.0) -> bytes:
        """The answer of the workers of a lease, one after the other while they are not there.

        Args:
            model: as callers name it.
            request: what; its affinity key says which worker keeps it.
            deadline: monotonic time at which nobody waits any more.
            hedge: seconds after which a second worker is asked as well; 0 for never.

        Raises:
            ResourceExhausted: all have too much to do, or none can answer in time.
            Unavailable: none is there, or the workers have changed.
            SealaneError: what a worker answered.
        """
        targets = self._routes.targets(model, calls.remaining(deadline))
        left, loads = list(targets), self.loads(model)
        failure: SealaneError | None = None
        while left:
            first = self._choose(left, loads, request, deadline)
            left.remove(first)
            nodes = [first]
            if hedge and left:
                nodes.append(choice.cheapest(left, loads, random.choice))
            places = [Place(targets[node], functools.partial(loads.begin, node)) for node in nodes]
            try:
                if len(places) > 1:
                    return self._caller.hedged(places, request, deadline, after=hedge)
                return self._caller.send(places[0].target, request, deadline, ticket=loads.begin(first))
            except SealaneError as error:
                if not self._elsewhere(error, more=bool(left)):
                    raise
                failure = error
        self._routes.expire(model)
        raise (
            failure
            if isinstance(failure, Unavailable)
            else Unavailable(f"the workers of {model!r} have changed; retry", reason="ROUTE_CHANGED")
        )

    def _choose(self, nodes: Sequence[str], loads: NodeLoads, request: Request, deadline: float) -> str:
        if request.affinity:
            chosen = bounded(nodes, key_of(self._session.project, request.affinity), str, loads.calls)
        else:
            chosen = choice.cheapest(nodes, loads, random.choice)
        return choice.in_time(chosen, nodes, loads, calls.remaining(deadline))

    def _elsewhere(self, error: SealaneError, *, more: bool) -> bool:
        """Whether the next worker of the lease may be asked, or a new lease where there is no `more`."""
        if error.reason == MODEL_CRASHED:  # what crashed one copy of the model is not shown to the next one
            return False
        if isinstance(error, ResourceExhausted):
            return more and error.reason not in OWN_LIMITS and self._caller.budget.spend()
        return error.reason in _MOVED or not calls.final(error)
