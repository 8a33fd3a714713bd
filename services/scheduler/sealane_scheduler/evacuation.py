"""Why what a drained node has can go nowhere else. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sealane_scheduler.cluster import Copy, Stuck
from sealane_scheduler.columns import Snapshot
from sealane_scheduler.holds import Holds
from sealane_scheduler.placement import Question, decide

#: Nothing could take a copy: others are asked again after so long.
ASK_AGAIN_SECONDS = 1.0


def asked_lately(leaving: Sequence[Copy], now: float) -> bool:
    """Whether copies wait that are to leave, and all of them were refused a moment ago.

    Args:
        leaving: copies on nodes that are drained.
        now: monotonic seconds.
    """
    return bool(leaving) and all(copy.stuck and now - copy.stuck.asked < ASK_AGAIN_SECONDS for copy in leaving)


def why_stuck(question: Question, nodes: Snapshot, holds: Holds, now: float) -> Stuck:
    """What keeps the nodes that are not held from taking a copy that nothing takes.

    Args:
        question: what was asked of all nodes, in vain.
        nodes: those nodes.
        holds: which of them take nothing new.
        now: monotonic seconds.
    """
    others = [place for node, place in nodes.index.items() if not holds.closed(node)]
    if not others:
        return Stuck("draining", "no other node takes new work; uncordon one, or join another", now)
    decision = decide(question, nodes.take(np.array(sorted(others))))
    return Stuck(decision.binding_constraint, decision.unavailable_reason, now)
