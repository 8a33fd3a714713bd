"""What a placement decision says: what was chosen, and everything that is told of why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that did not pass: every filter it failed, in order, with what was found."""

    node: str
    variant: str
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate that passed."""

    node: str
    variant: str
    score: float
    terms: dict[str, float]
    """What each term adds to the score."""
    latency_ms: float = 0.0
    """Milliseconds in which 99 of 100 calls are expected to be answered."""
    price: float = 0.0
    """Price, egress and energy of 1,000 calls, in units of currency."""


@dataclass(frozen=True, slots=True)
class FilterCount:
    """How many candidates a filter rejected, and who came nearest to passing it.

    Args:
        name: the filter.
        rejected: candidates that fail it, whatever else they fail.
        alone: those of them that fail nothing else.
        nearest: the candidate that fails least beside it, and it by least.
    """

    name: str
    rejected: int
    alone: int
    nearest: Rejected


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another point of the front of latency and price beside what was chosen.

    Args:
        candidate: who it is.
        latency_ms: its milliseconds less those of the chosen one; below 0 it is faster.
        price: its price of 1,000 calls less that of the chosen one.
        text: both in words.
    """

    candidate: Scored
    latency_ms: float
    price: float
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """What would make a demand feasible that is not.

    Args:
        node: where it would run then.
        variant: as what.
        filters: what would have to give way; one mostly.
        text: in words, with numbers.
    """

    node: str
    variant: str
    filters: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Of which nodes a decision was made.

    Args:
        version: of the table, grows with every change.
        digest: of the content of all nodes; empty for large fleets.
        nodes: how many there were.
        looked_at: how many of them were looked at.
        seed: which of equals was chosen.
    """

    version: int = 0
    digest: str = ""
    nodes: int = 0
    looked_at: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen and why; `node` is empty where nothing fits.

    Of few candidates all are in `rejected` and `candidates`; of many, the nearest misses and the best.
    """

    node: str
    variant: str
    reasons: tuple[str, ...]
    rejected: tuple[Rejected, ...] = ()
    candidates: tuple[Scored, ...] = ()
    binding_constraint: str = ""
    unavailable_reason: str = ""
    filters: tuple[FilterCount, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    changes: tuple[Change, ...] = ()
    passed: int = 0
    """Candidates that passed every filter."""
    seen: Seen = Seen()
    variant_digest: str = ""

    @property
    def kind(self) -> tuple[str, tuple[tuple[str, int], ...]]:
        """What binds, and how many each filter rejects: refusals of one kind differ in measured numbers alone."""
        return self.binding_constraint, tuple((item.name, item.rejected) for item in self.filters)
