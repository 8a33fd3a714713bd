"""Deployments that are placed one after the other, equals of large fleets at once; what they take can be given back.

Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sealane_scheduler.columns import NodeTable, Snapshot
from sealane_scheduler.decision import Decision
from sealane_scheduler.equals import decide_equals
from sealane_scheduler.filters import Demand, NodeView, VariantView, cpu_of, memory_of
from sealane_scheduler.placement import decide
from sealane_scheduler.scan import Question

#: Fleets up to this size are kept with each decision, so each has to follow from what was there before it.
RECORDED_NODES = 256


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
    """One decision after the other; equal ones of large fleets at once."""
    placed: list[Placed] = []
    for question, members in itertools.groupby(wanted, key=lambda item: item.question):
        alike = list(members)
        if len(alike) > 1 and all(item.copies == 1 for item in alike):
            placed += _equals(question, len(alike), room)
        else:
            placed += [_one(item, room) for item in alike]
    return placed


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


def _equals(question: Question, count: int, room: Room) -> list[Placed]:
    nodes = room.snapshot()
    if len(nodes) <= RECORDED_NODES:
        return [_one(Wanted(question), room) for _ in range(count)]
    found = decide_equals(question, nodes, count)
    variants = {variant.variant: variant for variant in question.variants}
    placed = []
    for number, chosen in enumerate(found.chosen):
        decision = found.decision
        if number:
            decision = replace(
                decision,
                node=chosen.node,
                variant=chosen.variant,
                variant_digest=variants[chosen.variant].digest,
                candidates=(chosen,),
                neighbours=(),
                reasons=(
                    f"lowest cost {chosen.score:.3f} after {number} like it went before; filters are counted "
                    "as the first of them found them",
                ),
            )
        taken = room.take(chosen.node, question.demand, variants[chosen.variant])
        placed.append(Placed((Place(decision, Basis(question, nodes), taken),)))
    if len(placed) < count:
        nodes = room.snapshot()
        refused = Placed((), (decide(question, nodes), Basis(question, nodes)))
        placed += [refused] * (count - len(placed))
    return placed


def without(placed: Placed, room: Room) -> Placed:
    """The same with no place at all."""
    for place in placed.places:
        room.give(place.taken)
    return Placed((), placed.refusal)


@dataclass(slots=True)
class TableRoom:
    """Implements :class:`Room` on a table alone."""

    table: NodeTable
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
