"""Deployments that are placed one after the other; what they take can be given back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sealane_scheduler.candidates import Candidates, Ledger
from sealane_scheduler.columns import DIGESTED, NodeTable, Snapshot
from sealane_scheduler.decision import Decision
from sealane_scheduler.filters import Demand, NodeView, VariantView, cpu_of, memory_of
from sealane_scheduler.placement import decide
from sealane_scheduler.scan import Question
from sealane_scheduler.standing import Standing, Standings

#: Fleets up to this size are kept with each decision, so each has to follow from what was there before it.
RECORDED_NODES = DIGESTED


@dataclass(frozen=True, slots=True)
class Wanted:
    """A member of a batch.

    Args:
        question: what it demands, with the copies that are there.
        copies: how many more it wants.
    """

    question: Question
    copies: int = 1

    @property
    def priority(self) -> int:
        """Its priority."""
        return self.question.demand.priority

    def variant(self, decision: Decision) -> VariantView:
        """The variant that a decision chose."""
        return next(item for item in self.question.variants if item.variant == decision.variant)


@dataclass(frozen=True, slots=True)
class Basis:
    """What a decision followed from.

    Args:
        question: what was asked.
        nodes: the fleet as it was.
        batch: all members, where they were assigned at once.
        member: which of them it is about.
        copy: which of its copies.
        why: the first reason, where it is another than that it costs least.
    """

    question: Question
    nodes: Snapshot
    batch: tuple[Wanted, ...] = ()
    member: int = 0
    copy: int = 0
    why: str = ""


def because(decision: Decision, why: str) -> Decision:
    """A decision with another first reason, if one is given."""
    return replace(decision, reasons=(why, *decision.reasons[1:])) if why else decision


@dataclass(frozen=True, slots=True)
class Place:
    """A decision that found a place, and what was taken for it."""

    decision: Decision
    basis: Basis
    taken: int


@dataclass(frozen=True, slots=True)
class Placed:
    """What was decided about a member.

    Args:
        places: one for each copy that has one.
        refusal: why there is no more, and what that followed from; None where all have one.
    """

    places: tuple[Place, ...]
    refusal: tuple[Decision, Basis] | None = None


class Room(Protocol):
    """What is free, and can be taken and given back."""

    @property
    def standings(self) -> Standings:
        """What was found lately."""
        ...

    def snapshot(self) -> Snapshot:
        """The nodes now."""
        ...

    def take(self, node: str, demand: Demand, variant: VariantView) -> int:
        """Take what a copy needs; returns what :meth:`give` wants."""
        ...

    def give(self, taken: int) -> None:
        """Give it back."""
        ...


def one_by_one(wanted: Sequence[Wanted], room: Room) -> list[Placed]:
    """One decision after the other; of large fleets all nodes are looked at once for each kind of demand."""
    nodes = room.snapshot()
    if len(nodes) <= RECORDED_NODES:
        return [_one(item, room) for item in wanted]
    batch = _Batch(nodes, room)
    return [batch.place(item) for item in wanted]


def _one(wanted: Wanted, room: Room) -> Placed:
    places: list[Place] = []
    question = wanted.question
    for _ in range(wanted.copies):
        nodes = room.snapshot()
        decision = decide(question, nodes)
        if not decision.node:
            placed = Placed(tuple(places), (decision, Basis(question, nodes)))
            return without(placed, room) if question.demand.gang else placed
        taken = room.take(decision.node, question.demand, wanted.variant(decision))
        places.append(Place(decision, Basis(question, nodes), taken))
        question = beside(question, nodes.node(nodes.index[decision.node]))
    return Placed(tuple(places))


def beside(question: Question, node: NodeView) -> Question:
    """The same question about one copy more, where one is on this node."""
    apart = (*question.demand.apart, (node.node, node.zone))
    return replace(question, demand=replace(question.demand, apart=apart))


class _Batch:
    """One decision after the other about a large fleet.

    Args:
        nodes: the fleet before the first.
        room: the same, and what is taken of it.
    """

    def __init__(self, nodes: Snapshot, room: Room) -> None:
        self._nodes = nodes
        self._room = room
        self._ledger = Ledger(nodes)
        self._kinds: dict[Question, tuple[Standing, Candidates]] = {}
        self._refused: dict[Question, Placed] = {}

    def place(self, wanted: Wanted) -> Placed:
        """Places for a member; what it gets is taken."""
        question = wanted.question
        if refused := self._refused.get(question):  # nothing is given back meanwhile
            return refused
        placed = self._alike(question) if wanted.copies == 1 else None
        if placed is None:
            placed = _one(wanted, self._room)
            for place in placed.places:
                self._ledger.take(place.decision.node, question.demand, wanted.variant(place.decision))
            if not placed.places:
                self._refused[question] = placed
        return placed

    def _alike(self, question: Question) -> Placed | None:
        """A place for one copy, found with what others of its kind have found; None where there is none."""
        if question not in self._kinds:
            standing = self._room.standings.of(question, self._nodes)
            self._kinds[question] = standing, Candidates(standing.scores, self._ledger)
        standing, candidates = self._kinds[question]
        pair = candidates.best()
        if pair is None:
            return None
        chosen, variant = candidates.take(pair), question.variants[pair[0]]
        decision, before = standing.decision, standing.uses
        standing.uses += 1
        if before or decision.candidates[:1] != (chosen,):
            decision = replace(
                decision,
                node=chosen.node,
                variant=chosen.variant,
                variant_digest=variant.digest,
                candidates=(chosen,),
                neighbours=(),
                reasons=(
                    f"lowest cost {chosen.score:.3f} now; filters were counted {before} decisions of its kind before",
                ),
            )
        taken = self._room.take(chosen.node, question.demand, variant)
        return Placed((Place(decision, Basis(question, self._nodes), taken),))


def without(placed: Placed, room: Room) -> Placed:
    """The same with no place at all."""
    for place in placed.places:
        room.give(place.taken)
    return Placed((), placed.refusal)


@dataclass(slots=True)
class TableRoom:
    """Implements :class:`Room` on a table alone."""

    table: NodeTable
    standings: Standings = field(default_factory=Standings)
    _taken: list[tuple[str, int, int]] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        """The nodes now."""
        return self.table.snapshot()

    def take(self, node: str, demand: Demand, variant: VariantView) -> int:
        """Take what a copy needs."""
        self._taken.append((node, memory_of(demand, variant), cpu_of(demand)))
        self._change(*self._taken[-1], -1)
        return len(self._taken) - 1

    def give(self, taken: int) -> None:
        """Give it back."""
        self._change(*self._taken[taken], 1)

    def _change(self, name: str, memory: int, cpu: int, sign: int) -> None:
        node = self.table.get(name)
        assert node is not None
        free, idle = node.free_memory + sign * memory, node.free_cpu_milli + sign * cpu
        self.table.put(replace(node, free_memory=free, free_cpu_milli=idle))


def give_back(placed: Iterable[Placed], room: Room) -> None:
    """Give back all that members got."""
    for item in placed:
        for place in item.places:
            room.give(place.taken)
