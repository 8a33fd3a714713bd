"""REG-7: what an alias was at any time, over ten thousand random moves, on both databases."""

from __future__ import annotations

import bisect
import random

import pytest
from registry_site import BOB, Site

from sealane.records.listing import Listing
from sealane.security import alias_history
from sealane.security.alias_history import Move
from sealane_registry.aliases import AliasRules
from sealane_registry.facts import facts_of
from sealane_registry.rows import MoveRow, Scope

#: PostgreSQL commits nothing here and answers over a socket: fewer, so that the test ends in its time.
MOVES = {"sqlite": 10_000, "postgresql": 2_000}


def move_of(row: MoveRow) -> tuple[Move, bytes]:
    name = f"projects/{row.project}/models/{row.model}/aliases/{row.alias}"
    previous = bytes.fromhex(row.previous_hash)
    move = Move(name, row.sequence, row.number, row.previous, row.time_us, row.mover, row.evidence, previous)
    return move, bytes.fromhex(row.hash)


class _Jumping:
    """A clock that goes on, stands still, and is set back."""

    def __init__(self, chance: random.Random) -> None:
        self._chance, self._now = chance, 1_800_000_000.0

    def now(self) -> float:
        self._now += self._chance.choice([0.0, 0.0, 1e-6, 0.4, 30.0, -5.0])
        return self._now

    def monotonic(self) -> float:
        return self._now


@pytest.mark.timeout(300)
def test_as_of_over_ten_thousand_random_moves(site: Site) -> None:
    """Checked against a list that is kept beside it, at every border and between."""
    chance, count = random.Random(7), MOVES[site.store._connection.dialect.name]
    versions = [site.push() for _ in range(5)]
    site.aliases = AliasRules(_Jumping(chance), facts_of)
    told: dict[str, list[tuple[int, int]]] = {"production": [], "canary": []}
    for _ in range(count):
        alias = chance.choice(list(told))
        present = site.store.alias(Scope("p", "digits", name=alias))
        if present is not None and present.number and chance.random() < 0.1:
            site.aliases.delete(site.store, BOB, Scope("p", "digits", name=alias), present.etag)
            number = 0
        else:
            number = site.move(chance.choice(versions), alias).number
        row = site.store.alias(Scope("p", "digits", name=alias))
        assert row is not None
        told[alias].append((round(row.update_time * 1e6), number))
    assert sum(map(len, told.values())) == count
    for alias, moves in told.items():
        scope = Scope("p", "digits", name=alias)
        times = [time for time, _ in moves]
        assert times == sorted(times), "time never goes back in a history"
        asked = {time + change for time in chance.sample(times, 500) for change in (-1, 0, 1)}
        for time in asked | {times[0] - 1, times[-1] + 10**9}:
            place = bisect.bisect_right(times, time) - 1
            found = site.store.move_as_of(scope, time)
            assert (found.number if found else None) == (moves[place][1] if place >= 0 else None)
        every = Listing((), "sequence", False, 2**31 - 2)
        assert alias_history.verify(move_of(row) for row in site.store.moves(scope, every)) == len(moves)
