"""Why a decision is as it is. Pure.

Counts of each filter with the nearest miss, the best candidates with their terms, what else there was on the front of
latency and price, and what would make an infeasible demand feasible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from sealane_scheduler import front, nearest, remedies
from sealane_scheduler.decision import Decision, Rejected, Scored, Seen
from sealane_scheduler.filters import Demand, NodeView, VariantView, expected_ms
from sealane_scheduler.scan import Pair, Scan, best

#: Of no more candidates than this, every one is told.
ALL_TOLD = 64
#: Of more, the best are.
BEST_TOLD = 5
_NAMES_TOLD = 3


def explain(found: Scan, chosen: Pair | None = None, why: str = "") -> Decision:
    """The decision that a scan leads to.

    Args:
        found: what was found.
        chosen: who was chosen where it is not the cheapest.
        why: the reason for that.
    """
    few = len(found.nodes) * len(found.question.variants) <= ALL_TOLD
    misses = nearest.misses(found)
    filters = tuple(nearest.count(found, miss) for miss in misses)
    ranked = best(found, ALL_TOLD if few else BEST_TOLD)
    rejected = _all_rejected(found) if few else _unique(item.nearest for item in filters)
    nodes = found.nodes
    seen = Seen(nodes.version, nodes.digest, nodes.total, len(nodes), found.question.seed)
    if not ranked:
        return _nowhere(found, misses, Decision("", "", (), rejected, filters=filters, seen=seen))
    if chosen is not None:
        ranked = [chosen, *(pair for pair in ranked if pair != chosen)]
    candidates = tuple(front.scored(found, pair) for pair in ranked)
    return Decision(
        candidates[0].node,
        candidates[0].variant,
        _reasons(found, ranked[0], candidates, why),
        rejected,
        candidates,
        filters=filters,
        neighbours=front.neighbours(found, ranked[0], candidates[0]),
        passed=found.passed,
        seen=seen,
        variant_digest=found.question.variants[ranked[0][0]].digest,
    )


def _unique(rejected: Iterable[Rejected]) -> tuple[Rejected, ...]:
    return tuple({(item.node, item.variant): item for item in rejected}.values())


def _all_rejected(found: Scan) -> tuple[Rejected, ...]:
    pairs = [(int(variant), int(position)) for variant, position in np.argwhere(found.sieve.misses)]
    pairs.sort(key=lambda pair: (found.nodes.node(pair[1]).node, pair[0]))
    return tuple(nearest.rejection(found, pair) for pair in pairs)


def _reasons(found: Scan, chosen: Pair, candidates: Sequence[Scored], why: str) -> tuple[str, ...]:
    demand, winner = found.question.demand, candidates[0]
    node, variant = found.fitting.node(chosen[1]), found.question.variants[chosen[0]]
    first = f"lowest cost {winner.score:.3f} of {found.passed} candidates that passed every filter"
    reasons = [why or first]
    if len(found.nodes) < found.nodes.total:
        looked = f"{len(found.nodes)} of {found.nodes.total} nodes"
        reasons.append(f"{looked} were looked at: a sample, and who holds the model")
    reasons += _grounds(demand, node, variant)
    if len(candidates) > 1:
        other = candidates[1]
        reasons.append(f"next best: {other.variant} on {other.node}, {_difference(winner, other)}")
    return tuple(reasons)


def _grounds(demand: Demand, node: NodeView, variant: VariantView) -> Iterable[str]:
    if demand.residency:
        yield f"{demand.data_class} data stays in {', '.join(demand.residency)}, where {node.node} is"
    if demand.tier:
        yield f"{demand.tier} preferred, {node.node} is {node.tier}"
    if demand.latency_ms:
        yield f"{expected_ms(demand, node, variant):.1f} ms expected, {demand.latency_ms:g} ms wanted"
    if variant.accuracy is not None:
        yield f"{variant.variant} measured {variant.accuracy:.4f} accuracy in {variant.size_bytes} bytes"


def _difference(winner: Scored, other: Scored) -> str:
    name = max(winner.terms, key=lambda term: other.terms[term] - winner.terms[term])
    return f"{other.score - winner.score:.3f} more, mostly {name}"


def _nowhere(found: Scan, misses: Sequence[nearest.Miss], decision: Decision) -> Decision:
    """What binds, why nothing fits, and what would change that."""
    if not found.question.variants:
        why = "the version has no variant; push one"
        return replace(decision, binding_constraint="variants", unavailable_reason=why)
    if not len(found.nodes):
        return replace(decision, binding_constraint="nodes", unavailable_reason="no worker has joined; start one")
    # The nearest miss: a living candidate that fails least. What it fails first is what binds.
    pair = nearest.of_all(found)
    miss = nearest.rejection(found, pair)
    constraint, why = miss.failures[0]
    reason = f"{constraint}: {why} ({miss.node})"
    lost = _only_lost(found)
    if lost:
        reason += f"; {lost} could serve it and is lost"
    changes = remedies.changes(found, misses, pair)
    return replace(decision, binding_constraint=constraint, unavailable_reason=reason, changes=changes)


def _only_lost(found: Scan) -> str:
    """Names of some nodes that nothing speaks against but that they are lost."""
    dead = found.sieve.failing.get("alive")
    if dead is None:
        return ""
    positions = np.flatnonzero((dead & (found.sieve.misses == 1)).any(axis=0))
    names = sorted(found.nodes.node(int(position)).node for position in positions[:_NAMES_TOLD])
    more = len(positions) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
