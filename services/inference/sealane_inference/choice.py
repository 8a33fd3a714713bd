"""Which of the workers in reach gets a call, and whether any of them can answer it in time."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sealane.errors import DeadlineExceeded, ResourceExhausted, SealaneError
from sealane.protocols import sealed
from sealane.rpc.affinity import AFFINITY, bounded
from sealane.rpc.call import Call
from sealane.rpc.loads import Expected, NodeLoads
from sealane_inference.routing import Endpoint, pick

#: Methods that run a model. What workers say of their load is of these.
_RUNS = sealed.RUNS | {sealed.INFER}
#: Of an affinity key so much counts.
_KEY_LENGTH = 256


def choose(call: Call, endpoints: Sequence[Endpoint], loads: NodeLoads) -> Endpoint:
    """The endpoint that keeps what belongs to the call's affinity key; without one, the cheapest.

    Raises:
        ResourceExhausted, DeadlineExceeded: see :func:`in_time`.
    """
    key = call.metadata.get(AFFINITY, "")
    if key:
        wanted = f"{call.caller.project}\0{key[:_KEY_LENGTH]}"
        chosen = bounded(endpoints, wanted, lambda endpoint: endpoint.node, loads.calls)
    else:
        chosen = pick(endpoints, loads, random.choice)
    return in_time(call, chosen, endpoints, loads)


def in_time(call: Call, chosen: Endpoint, endpoints: Sequence[Endpoint], loads: NodeLoads) -> Endpoint:
    """The endpoint that was chosen where it can answer before the deadline, else another one that can.

    One of which too little is known can, as far as anybody knows: so nobody is refused for what was true once.

    Raises:
        ResourceExhausted: none can, because of what waits there already.
        DeadlineExceeded: none could if nothing waited.
    """
    if call.method.path not in _RUNS:
        return chosen
    left = call.remaining
    if _fits(loads.expected(chosen.node), left):
        return chosen
    expected = {endpoint.node: loads.expected(endpoint.node) for endpoint in endpoints}
    for endpoint in endpoints:
        if _fits(expected[endpoint.node], left):
            return endpoint
    raise _too_late([item for item in expected.values() if item is not None], left)


def _fits(expected: Expected | None, left: float) -> bool:
    return expected is None or expected.idle + expected.wait <= left


def _too_late(expected: Sequence[Expected], left: float) -> SealaneError:
    alone = min(item.idle for item in expected)
    if alone > left:
        return DeadlineExceeded(
            f"{left * 1000:.0f} ms are left, and workers that have nothing else to do take {alone * 1000:.0f} ms; "
            "allow more time",
            reason="DEADLINE_TOO_SHORT",
        )
    return ResourceExhausted(
        "no worker can answer before the deadline, too much waits for them; allow more time or add replicas",
        reason="QUEUE_WAIT",
        retry_after=max(min(item.wait for item in expected), 0.01),
    )
