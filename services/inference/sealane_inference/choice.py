"""Which of the workers in reach gets a call."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sealane.protocols import sealed
from sealane.rpc import choice
from sealane.rpc.affinity import AFFINITY, bounded, key_of
from sealane.rpc.call import Call
from sealane.rpc.loads import NodeLoads
from sealane_inference.routing import Endpoint

#: Methods that run a model. What workers say of their load is of these.
_RUNS = sealed.RUNS | {sealed.INFER}


def choose(call: Call, endpoints: Sequence[Endpoint], loads: NodeLoads) -> Endpoint:
    """The endpoint that keeps what belongs to the call's affinity key; without one, the cheapest.

    Raises:
        ResourceExhausted, DeadlineExceeded: none can answer in time; see :func:`sealane.rpc.choice.in_time`.
    """
    nodes = {endpoint.node: endpoint for endpoint in endpoints}
    key = call.metadata.get(AFFINITY, "")
    if key:
        chosen = bounded(list(nodes), key_of(call.caller.project, key), str, loads.calls)
    elif len(nodes) > 1:
        chosen = choice.cheapest(list(nodes), loads, random.choice)
    else:
        chosen = next(iter(nodes))
    return nodes[_in_time(call, chosen, list(nodes), loads)]


def check_time(call: Call, endpoint: Endpoint, loads: NodeLoads) -> None:
    """Refuse a call that the one endpoint which may get it cannot answer in time.

    Raises:
        ResourceExhausted, DeadlineExceeded: see :func:`sealane.rpc.choice.in_time`.
    """
    _in_time(call, endpoint.node, [endpoint.node], loads)


def _in_time(call: Call, chosen: str, nodes: Sequence[str], loads: NodeLoads) -> str:
    return choice.in_time(chosen, nodes, loads, call.remaining) if call.method.path in _RUNS else chosen
