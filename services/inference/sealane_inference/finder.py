"""From a call of a foreign protocol to its route, with the words that the protocol has for a miss."""

from __future__ import annotations

import functools
from collections.abc import Callable

from sealane.errors import InvalidArgument, SealaneError
from sealane.protocols.call import Target
from sealane.protocols.peek import peek
from sealane.protocols.sealed import RUNS, sealed_required
from sealane.rpc.call import Call
from sealane_inference.present import Present
from sealane_inference.routing import Route, resolve, versions

Unknown = Callable[[Target], SealaneError]


class Finder:
    """Finds routes.

    Args:
        present: the routes.
        unknown: makes the error for a model that is not there.
        nameless: what a caller is told who names none.
    """

    def __init__(self, present: Present, unknown: Unknown, nameless: str) -> None:
        self._present = present
        self._unknown = unknown
        self._nameless = nameless

    def target(self, call: Call) -> Target:
        """The model that the call names.

        Raises:
            InvalidArgument: it names none, or its body is malformed.
        """
        target = peek(call.method.path, call.body or b"")
        if not target.model:
            raise InvalidArgument(self._nameless, reason="MODEL_NAME_MISSING", field="model_spec.name")
        return target

    def route(self, call: Call, target: Target) -> Route:
        """The route to `target` in the caller's project.

        Raises:
            NotFound: no such model or version there.
            FailedPrecondition: the name means several deployments, or its owner wants what is sent there sealed.
            Unavailable: there are no routes yet.
        """
        # Most tokens are for all models of their project: for them nothing is asked of each route.
        may = functools.partial(may_use, call) if call.caller.models else _anything
        route = resolve(self._present.table, call.caller.project, target, may)
        if route is None:
            raise self._unknown(target)
        if route.sealing_required and call.method.path in RUNS:
            raise sealed_required(route.deployment)
        call.model = (route.project, route.deployment, route.version)
        return route

    def versions(self, call: Call, target: Target) -> list[Route]:
        """The routes of all versions that a name has; of the one that its label means, where it has one.

        Raises:
            NotFound, FailedPrecondition, Unavailable: see :meth:`route`.
        """
        if not target.label:
            named = versions(self._present.table, call.caller.project, target.model)
            mine = [route for route in named if may_use(call, route)]
            if mine:
                return mine
        return [self.route(call, Target(target.model, label=target.label))]

    def mine(self, call: Call) -> list[Route]:
        """The routes of the caller's project that its token may use."""
        routes = self._present.table.routes.get(call.caller.project, {})
        return [route for route in routes.values() if may_use(call, route)]


def _anything(route: Route) -> bool:
    return True


def may_use(call: Call, route: Route) -> bool:
    """Whether the caller's token, if it is limited to some models, is for all models of a route."""
    permission = call.method.access.permission
    return not call.caller.models or all(call.caller.may_use(permission, model) for model in route.models)
