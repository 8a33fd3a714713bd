"""Placing what waits together, so that all of it costs least. Pure.

Each member is first placed as if it were alone, the higher priority before the lower. Where that costs more than it
must, because some lack room that others of their priority took, all of that priority are assigned at once by linear
programming (:func:`place_batch`); of the two the cheaper one holds, so a batch never costs more than one decision after
the other.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from sealane_scheduler.batch import Basis, Place, Placed, Room, Wanted, beside, give_back, one_by_one, without
from sealane_scheduler.columns import Rows, Snapshot
from sealane_scheduler.decision import Decision
from sealane_scheduler.explanation import explain
from sealane_scheduler.filters import cpu_of, memory_of
from sealane_scheduler.placement import FULL_SCAN, decide, search
from sealane_scheduler.scan import Pair, Question, Scan, Scores, best
from sealane_scheduler.terms import by_the_hour

_SOLVER = "sealane_scheduler.contention"
#: Share of the cost that may be lost before all members are assigned anew.
SLACK = 0.02
#: What a copy costs that is nowhere, as a multiple of the dearest place.
_PENALTY = 10.0
_EQUAL = 1e-9
_MILLIONTHS = 1e6


def solver_is_loaded() -> bool:
    """Whether the solver is in memory."""
    return _SOLVER in sys.modules


def load_solver() -> None:
    """Take the solver into memory: 50 MB that many schedulers never need, and up to a second; do it in a thread."""
    importlib.import_module(_SOLVER)


def place_all(wanted: Sequence[Wanted], room: Room, *, gang: bool = False) -> list[Placed]:
    """Places for all members, in their order; what they got is taken.

    Args:
        wanted: the members; the higher priority comes first, then as they stand here.
        room: what is free.
        gang: whether all of them are placed or none.
    """
    order = sorted(range(len(wanted)), key=lambda index: -wanted[index].priority)
    found: dict[int, Placed] = {}
    for _, level in itertools.groupby(order, key=lambda index: wanted[index].priority):
        indices = list(level)
        found.update(zip(indices, _level([wanted[index] for index in indices], room), strict=True))
    placed = [found[index] for index in range(len(wanted))]
    if gang and any(item.refusal is not None for item in placed):
        return [without(item, room) for item in placed]
    return placed


def _level(wanted: Sequence[Wanted], room: Room) -> list[Placed]:
    """Members of one priority."""
    before = room.snapshot()
    alone = one_by_one(wanted, room)
    if len({item.question for item in wanted}) == 1 or not _is_contended(wanted, alone, before, room):
        return alone
    give_back(alone, room)
    found_for = {question: search(question, before) for question in dict.fromkeys(item.question for item in wanted)}
    scans = [found_for[item.question] for item in wanted]
    dearest = max(_hourly(item, _dearest(scan)) for item, scan in zip(wanted, scans, strict=True))
    penalty = _PENALTY * dearest + _EQUAL
    found = _assigned(wanted, scans, before, room, penalty)
    if _total(wanted, found, penalty) < _total(wanted, alone, penalty) - _EQUAL:
        return found
    give_back(found, room)
    return one_by_one(wanted, room)


def _is_contended(wanted: Sequence[Wanted], alone: Sequence[Placed], before: Snapshot, room: Room) -> bool:
    """Whether more than SLACK of the cost, or a place, is lost because some took what others would have had alone.

    What all of them would pay if nobody took another's room bounds the cost of every assignment from below.
    """
    kinds: defaultdict[Question, list[tuple[Wanted, Placed]]] = defaultdict(list)
    for item, placed in zip(wanted, alone, strict=True):
        kinds[item.question].append((item, placed))
    rows = {question: _rows(members, before) for question, members in kinds.items()}
    taken, after = np.unique(np.concatenate(list(rows.values()))), room.snapshot()
    if _has_room(after, taken, kinds):
        return False
    lost, total = 0.0, 0.0
    for question, members in kinds.items():
        others = taken[~np.isin(taken, rows[question])]
        sampled = len(before) > FULL_SCAN
        found = search(question, before.take(others)) if sampled else room.standings.of(question, before).scores
        least = _least_taken(found, others, after)
        for item, placed in members:
            if placed.refusal is not None and least < np.inf:
                return True
            for place in placed.places:
                score = place.decision.candidates[0].score
                total += abs(_hourly(item, score))
                lost += max(0.0, _hourly(item, score - least)) if least < np.inf else 0.0
    return lost > SLACK * total


def _has_room(nodes: Snapshot, rows: Rows, kinds: Collection[Question]) -> bool:
    """Whether all of these nodes could take one more of any kind."""
    memory = max((memory_of(kind.demand, view) for kind in kinds for view in kind.variants), default=0)
    cpu = max(cpu_of(kind.demand) for kind in kinds)
    return bool(np.all(nodes["free_memory"][rows] >= memory) and np.all(nodes["free_cpu"][rows] >= cpu))


def _rows(members: Sequence[tuple[Wanted, Placed]], nodes: Snapshot) -> Rows:
    """Rows of the nodes that members have got."""
    found = [nodes.index[place.decision.node] for _, placed in members for place in placed.places]
    return np.array(found, np.int64)


def _least_taken(found: Scores, taken: Rows, after: Snapshot) -> float:
    """The least that a member would have paid on a node that has no room for it any more; infinite for none.

    Args:
        found: what was found before.
        taken: rows of the nodes of which others took something.
        after: what is left.
    """
    there, places = found.at(taken)
    demand, least, rows = found.question.demand, np.inf, taken[there]
    for variant, view in enumerate(found.question.variants if len(rows) else ()):
        full = after["free_memory"][rows] < memory_of(demand, view)
        full |= after["free_cpu"][rows] < cpu_of(demand)
        least = min(least, float(np.where(full, found.scores[variant, places], np.inf).min()))
    return least / _MILLIONTHS


def _hourly(item: Wanted, score: float) -> float:
    return score * by_the_hour(item.question.demand)


def _dearest(scan: Scan) -> float:
    passed = scan.scores[np.isfinite(scan.scores)]
    return float(np.abs(passed).max()) / _MILLIONTHS if len(passed) else 0.0


def _total(wanted: Sequence[Wanted], found: Sequence[Placed], penalty: float) -> float:
    """What a batch costs by the hour, copies that are nowhere included."""
    return sum(
        sum(_hourly(item, place.decision.candidates[0].score) for place in placed.places)
        + penalty * (item.copies - len(placed.places))
        for item, placed in zip(wanted, found, strict=True)
    )


def _assigned(
    wanted: Sequence[Wanted], scans: Sequence[Scan], before: Snapshot, room: Room, penalty: float
) -> list[Placed]:
    """Places by the solver; what they got is taken."""
    from sealane_scheduler import contention  # see :func:`load_solver`

    chosen = contention.assign(wanted, scans, before, penalty)
    found: list[Placed] = []
    told: dict[tuple[int, Pair], Decision] = {}
    for member, (item, scan, pairs) in enumerate(zip(wanted, scans, chosen, strict=True)):
        places = []
        for copy, pair in enumerate(pairs):
            key = (id(scan), pair)
            decision = told[key] = told.get(key) or explain(scan, pair, _why(scan, pair, len(wanted)))
            taken = room.take(decision.node, item.question.demand, item.question.variants[pair[0]])
            basis = Basis(item.question, before, tuple(wanted), member, copy)
            places.append(Place(decision, basis, taken))
        found.append(Placed(tuple(places)))
    return [_checked(item, placed, room) for item, placed in zip(wanted, found, strict=True)]


def _checked(item: Wanted, placed: Placed, room: Room) -> Placed:
    """The same with what speaks against more copies, where some have no place."""
    if len(placed.places) == item.copies:
        return placed
    question, nodes = item.question, room.snapshot()
    for place in placed.places:
        question = beside(question, nodes.node(nodes.index[place.decision.node]))
    decision = decide(question, nodes)
    if decision.node:  # the solver looked at some nodes only
        rest = one_by_one([Wanted(question, item.copies - len(placed.places))], room)[0]
        placed = Placed((*placed.places, *rest.places), rest.refusal)
    else:
        placed = Placed(placed.places, (decision, Basis(question, nodes)))
    lacking = placed.refusal is not None and item.question.demand.gang
    return without(placed, room) if lacking else placed


def _why(scan: Scan, pair: Pair, count: int) -> str:
    (first,) = best(scan, 1)
    if first == pair:
        return ""
    more = (scan.scores[pair] - scan.scores[first]) / _MILLIONTHS
    node, variant = scan.fitting.node(first[1]).node, scan.question.variants[first[0]].variant
    return (
        f"assigned at once with {count - 1} others that want the same room: {more:.3f} more than {variant} on {node}, "
        "and all of them together cost least"
    )
