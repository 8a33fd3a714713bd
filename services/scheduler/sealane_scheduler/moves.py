"""What a better place for all copies at once is made of: who may move, and who would."""

from __future__ import annotations

from dataclasses import dataclass

from sealane_scheduler.filters import Demand, VariantView


@dataclass(frozen=True, slots=True)
class Movable:
    """A deployment whose copies may move.

    Args:
        name: its resource name.
        demand: what it needs and wants.
        variants: of what there is to choose.
        copies: (node, variant id) of each copy.
    """

    name: str
    demand: Demand
    variants: tuple[VariantView, ...]
    copies: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Move:
    """One copy that would be better elsewhere; `saves` is in units of the score by the hour."""

    deployment: str
    source: str
    target: str
    variant: str
    saves: float


@dataclass(frozen=True, slots=True)
class GlobalPlan:
    """What there is to gain.

    Args:
        moves: who would go where, the largest saving first.
        cost: of all copies where they are, by the hour.
        planned: the same after the moves.
        bound: no assignment within the budget of moves costs less.
        copies: how many copies were looked at.
    """

    moves: tuple[Move, ...] = ()
    cost: float = 0.0
    planned: float = 0.0
    bound: float = 0.0
    copies: int = 0

    @property
    def gap(self) -> float:
        """By what share `planned` may be above the least possible."""
        return max(0.0, (self.planned - self.bound) / abs(self.bound)) if self.bound else 0.0
