"""Takes a call to a worker that serves its deployment, and to another one where the first fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

from sealane import telemetry
from sealane.errors import (
    MODEL_CRASHED,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    SealaneError,
    Unavailable,
)
from sealane.rpc.authentication import FORWARDED_BINDING, binding_of
from sealane.rpc.call import Call
from sealane.rpc.retry_budget import RetryBudget
from sealane.rpc.transport import OWN_LIMITS
from sealane.telemetry import Telemetry
from sealane_inference.choice import check_time, choose
from sealane_inference.lanes import LANE_FULL, LANE_UNSENT, LaneCall
from sealane_inference.loads import Loads
from sealane_inference.present import Present
from sealane_inference.routing import Endpoint, Route, keeper, refusal

#: Longest wait for a worker that is not there yet, within the call's own deadline.
WAIT_SECONDS = 10.0
#: Pause before the same workers are tried again where nothing has changed.
RETRY_SECONDS = 0.2

#: There was no lane to send the call over.
NO_WORKER = "NO_WORKER"
#: No worker has begun the call, so one that must not run twice may still go to another. A list of what is known to be
#: so, because a reason that is forgotten here costs a retry, and in a list of the others it would cost a second run.
NOT_RUN = frozenset({NO_WORKER, LANE_UNSENT, LANE_FULL, "STALE_ROUTE", "OVERLOAD", "FAIR_SHARE"})
#: Nor has the model, where it is one model and no chain of them.
MODEL_NOT_RUN = frozenset({"MODEL_LOADING", "MODEL_RESTARTING"})

FindRoute = Callable[[], Route]


class Forwarder:
    """Forwards calls over the lanes."""

    def __init__(self, present: Present, loads: Loads, telemetry_: Telemetry) -> None:
        self._present = present
        self._loads = loads
        self._telemetry = telemetry_
        self._budget = RetryBudget()

    async def repeatable(self, call: Call, find: FindRoute) -> bytes:
        """Forward a call that may run more than once: every failure to reach an answer is retried.

        But not a crash of the model: what killed one copy of it is not shown to the next one.
        `find` gives the route anew for each attempt, because the table may change meanwhile.

        Raises:
            Unavailable: no worker answered in the time there was, or the model crashed while it ran the call.
            ResourceExhausted: those who serve it have too much to do.
            SealaneError: what `find` raises, or what a worker answered.
        """
        self._budget.earn()
        patience = min(call.deadline, time.monotonic() + WAIT_SECONDS)
        tried: set[tuple[str, int]] = set()
        failure: SealaneError | None = None
        while True:
            change = self._present.change()
            route = find()
            if (refused := refusal(route)) is not None:
                raise refused
            fresh = [
                endpoint for endpoint in self._present.reachable(route) if (endpoint.node, endpoint.epoch) not in tried
            ]
            if fresh:
                endpoint = choose(call, fresh, self._loads.of(route.name))
                try:
                    return await self._send(call, route, endpoint)
                except (Unavailable, ResourceExhausted) as error:
                    if not self._elsewhere(error):
                        raise
                    failure = error
                    tried.add((endpoint.node, endpoint.epoch))
                    continue
            if isinstance(failure, ResourceExhausted) or time.monotonic() >= patience:
                raise failure or _nobody(route)
            await _wait(change, patience)
            tried.clear()

    def _elsewhere(self, error: SealaneError) -> bool:
        """Whether another worker may be asked after this refusal."""
        if error.reason == MODEL_CRASHED:
            return False
        if not isinstance(error, ResourceExhausted) or error.reason == LANE_FULL:  # no worker has seen that one
            return True
        return error.reason not in OWN_LIMITS and self._budget.spend()

    async def kept(self, call: Call, find: FindRoute, key: str) -> bytes:
        """Forward a call to the worker that keeps what belongs to `key`; it is never run twice.

        Raises:
            Unavailable: that worker is out of reach, or was lost while it may have run the call.
            SealaneError: what `find` raises, or what the worker answered.
        """
        patience = min(call.deadline, time.monotonic() + WAIT_SECONDS)
        while True:
            change = self._present.change()
            route = find()
            if (refused := refusal(route)) is not None:
                raise refused
            endpoint = keeper(route.endpoints, key)
            failure = _nobody(route)
            if endpoint is not None and self._present.lane(endpoint.node) is not None:
                check_time(call, endpoint, self._loads.of(route.name))
                try:
                    return await self._send(call, route, endpoint, once=True)
                except Unavailable as error:
                    # A chain may have run some of its models before one that was not there.
                    if error.reason not in NOT_RUN and (route.chain or error.reason not in MODEL_NOT_RUN):
                        raise
                    failure = error
            if time.monotonic() >= patience:
                raise failure
            await _wait(change, patience)

    async def everywhere(self, call: Call, route: Route) -> list[bytes]:
        """Ask all workers of a route; those that cannot be reached are left out.

        Raises:
            Unavailable: none can be reached.
            SealaneError: what a worker answered.
        """
        endpoints = self._present.reachable(route)
        outcomes = await asyncio.gather(
            *(self._send(call, route, endpoint) for endpoint in endpoints), return_exceptions=True
        )
        answers = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and (not answers or not isinstance(outcome, Unavailable)):
                raise outcome
        if not answers:
            raise _nobody(route)
        return answers

    async def once(self, call: Call, route: Route, key_ids: tuple[str, ...]) -> bytes:
        """Forward a sealed call to one of its recipients; another one only where the first did not run it.

        Raises:
            FailedPrecondition: none of the recipients' keys is a present key of a worker of the route.
            Unavailable: no recipient can be reached, or one failed while it may have run the call.
            SealaneError: what the worker answered.
        """
        recipients = [endpoint for endpoint in self._present.reachable(route) if endpoint.key_id in key_ids]
        if not recipients:
            if (refused := refusal(route)) is not None:
                raise refused
            if any(endpoint.key_id in key_ids for endpoint in route.endpoints):
                raise _nobody(route)
            raise FailedPrecondition(
                "no worker has a key that the request is sealed to; get the sealing context and seal again",
                reason="STALE_SEALING_KEY",
            )
        while True:
            endpoint = choose(call, recipients, self._loads.of(route.name))
            recipients.remove(endpoint)
            try:
                return await self._send(call, route, endpoint, once=True)
            except (Unavailable, ResourceExhausted) as error:
                # What a worker says of a run is sealed with the answer: what is read here happened before or around
                # it. Unless it is known that the envelope was not opened, the sender has to seal anew.
                if error.reason not in NOT_RUN or not recipients or not self._elsewhere(error):
                    raise

    async def _send(self, call: Call, route: Route, endpoint: Endpoint, *, once: bool = False) -> bytes:
        remaining = call.remaining
        if remaining <= 0:
            raise DeadlineExceeded("the deadline was over before a worker was asked; allow more time")
        lane = self._present.lane(endpoint.node)
        if lane is None:
            raise _nobody(route)
        outgoing = LaneCall(call.method.path, route.name, endpoint.epoch, _metadata(call), call.body or b"", once)
        with self._loads.of(route.name).begin(endpoint.node) as ticket:
            if not telemetry.sampled():  # most are not, and a span that is none costs as much as the lane itself
                return await lane.call(outgoing, remaining, ticket.hear)
            facts = {telemetry.NODE: endpoint.node, telemetry.DEPLOYMENT: route.name}
            with self._telemetry.span(telemetry.SPAN_LANE, **facts):
                return await lane.call(replace(outgoing, metadata=_metadata(call)), remaining, ticket.hear)


def _metadata(call: Call) -> dict[str, str]:
    """What the worker needs of the call, and nothing else that a caller sent.

    The binding is what this gateway verified; a caller's own copy of it never passes (SECURITY 3.5).
    """
    metadata = {
        "authorization": call.metadata.get("authorization", ""),
        "x-request-id": call.request_id,
        "traceparent": telemetry.current(),
        FORWARDED_BINDING: binding_of(call.caller),
    }
    return {key: value for key, value in metadata.items() if value}


async def _wait(change: asyncio.Event, patience: float) -> None:
    """Until something changes, but not longer than it takes to try the same workers again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(RETRY_SECONDS, max(0.0, patience - time.monotonic()))):
            await change.wait()


def _nobody(route: Route) -> Unavailable:
    return Unavailable(
        f"no worker serves deployment {route.deployment!r} now; retry in a moment", reason=NO_WORKER, retry_after=0.2
    )
