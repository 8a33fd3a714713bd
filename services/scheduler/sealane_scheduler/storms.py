"""Tells a zone that is cut off from workers that are lost one by one. Pure but for what it remembers.

Who loses a large part of a zone at once has mostly lost the way to it, not the workers: they go on serving, and to
begin all their work elsewhere would cost most where there is least room. So nothing of such a zone is placed elsewhere
until half the lease again has passed.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from sealane_scheduler.fleet import READY, Fleet

log = logging.getLogger("sealane.storms")

#: Losses this close together count together.
WINDOW_SECONDS = 10.0
#: More than this share of a zone's workers, and at least so many.
SHARE, LEAST = 0.3, 3
#: Times the lease for which nothing is placed elsewhere.
LEASES = 1.5


@dataclass(frozen=True, slots=True)
class Held:
    """A worker of a zone that seems cut off.

    Args:
        zone: its zone.
        lost: how many of the zone were lost, when it was noticed.
        of: of how many.
        until: when its work is placed elsewhere, monotonic seconds.
    """

    zone: str
    lost: int
    of: int
    until: float

    def words(self, now: float) -> str:
        """Why its work is where it is.

        Args:
            now: monotonic seconds.
        """
        return (
            f"{self.lost} of {self.of} workers of zone {self.zone or 'none'} were lost within {WINDOW_SECONDS:g} s, "
            f"as if it were cut off: nothing of it is placed elsewhere for another {max(self.until - now, 0.0):.0f} s"
        )


class Storms:
    """Zones that seem cut off. Lives on the event loop."""

    def __init__(self) -> None:
        self._lost: dict[str, tuple[str, float]] = {}
        self._held: dict[str, Held] = {}

    def look(self, fleet: Fleet, now: float) -> None:
        """Take in what the fleet has lost since the last look.

        Args:
            fleet: the workers; the losses that it tells of are taken from it.
            now: monotonic seconds.
        """
        losses = list(dict.fromkeys(fleet.losses))
        fleet.losses.clear()
        for node in losses:
            self._held.pop(node, None)
            self._lost[node] = (_zone(fleet, node), now)
        for node in [name for name in (*self._lost, *self._held) if _is_back(fleet, name)]:
            self._lost.pop(node, None)
            self._held.pop(node, None)
        self._lost = {node: loss for node, loss in self._lost.items() if now - loss[1] < WINDOW_SECONDS}
        for node in [name for name, held in self._held.items() if held.until <= now]:
            del self._held[node]
        if losses:
            self._judge(fleet, {self._lost[node][0] for node in losses if node in self._lost})

    def held(self, node: str) -> Held | None:
        """Why nothing of a worker is placed elsewhere; None where that is not so."""
        return self._held.get(node)

    def _judge(self, fleet: Fleet, zones: set[str]) -> None:
        there = Counter(_zone(fleet, state.node) for state in fleet if state.state == READY)
        for zone in zones:
            gone = {node: when for node, (where, when) in self._lost.items() if where == zone}
            already = [held for held in self._held.values() if held.zone == zone]
            total = there[zone] + len(gone)
            if not already and (len(gone) < LEAST or len(gone) <= SHARE * total):
                continue
            if not already:
                log.warning(
                    "a zone seems cut off, its work stays where it is for now",
                    extra={"zone": zone, "lost": len(gone), "workers": total},
                )
            for node, when in gone.items():
                self._held.setdefault(node, Held(zone, len(gone), total, when + LEASES * _lease(fleet, node)))


def _zone(fleet: Fleet, node: str) -> str:
    state = fleet.get(node)
    return "" if state is None else state.facts.attributes.get("zone", "")


def _lease(fleet: Fleet, node: str) -> float:
    state = fleet.get(node)
    return 0.0 if state is None else fleet.patience.of(state.tier)


def _is_back(fleet: Fleet, node: str) -> bool:
    state = fleet.get(node)
    return state is None or state.state == READY
