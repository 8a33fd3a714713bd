"""Which of several workers gets a call, and whether any of them can answer it in time. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sealane.errors import DeadlineExceeded, ResourceExhausted, SealaneError
from sealane.rpc.loads import Expected, NodeLoads

#: Above so many nodes, a sample of so many stands for all: more of it gains little (Mitzenmacher 2001).
MOST_SCANNED, SAMPLE = 256, 8

Choose = Callable[[Sequence[str]], str]
"""Takes one of several by chance."""


def cheapest(nodes: Sequence[str], loads: NodeLoads, choose: Choose) -> str:
    """The node that a call costs least at; `choose` breaks ties, so that equals share the load.

    All are looked at while they are few; of very many, some that `choose` takes by chance.
    """
    if len(nodes) > MOST_SCANNED:
        nodes = [choose(nodes) for _ in range(SAMPLE)]
    costs = loads.costs(nodes)
    least = min(costs)
    return choose([node for node, cost in zip(nodes, costs, strict=True) if cost == least])


def in_time(chosen: str, nodes: Sequence[str], loads: NodeLoads, left: float) -> str:
    """The node that was chosen where it can answer in `left` seconds, else another one that can.

    One of which too little is known can, as far as anybody knows: so nobody is refused for what was true once.

    Raises:
        ResourceExhausted: none can, because of what waits there already.
        DeadlineExceeded: none could if nothing waited.
    """
    if _fits(loads.expected(chosen), left):
        return chosen
    expected = {node: loads.expected(node) for node in nodes}
    for node, found in expected.items():
        if _fits(found, left):
            return node
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
