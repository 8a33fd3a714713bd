"""Assignments made and made cheaper step by step: one copy elsewhere, or two that change places. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NOWHERE = -1
_LEAST_SAVING = 1e-9
#: Swaps that are looked at in one go, for the copies that would gain most.
_ROWS = 64


@dataclass(slots=True)
class Places:
    """Where each copy is.

    Args:
        costs: copies by nodes; infinite where a copy may not be.
        needs: resources by copies by nodes.
        free: resources by nodes, what is left.
        at: node of each copy, NOWHERE where it has none.
        home: node from which each copy counts as moved; NOWHERE for none.
        unplaced: cost of a copy that is nowhere.
        moves: copies that may still be moved from home; None for all.
        twins: for each copy, the copies that may not share a node (or a zone) with it.
        zones: zone of each node by which twins are kept apart; the node itself where only nodes count.
    """

    costs: Floats
    needs: Floats
    free: Floats
    at: Ints
    home: Ints
    unplaced: float
    moves: int | None
    twins: Sequence[Ints]
    zones: Sequence[Ints]

    def put(self, copy: int, node: int) -> None:
        """Move a copy; its room is given back and taken."""
        before, home = int(self.at[copy]), int(self.home[copy])
        if before != NOWHERE:
            self.free[:, before] += self.needs[:, copy, before]
        if node != NOWHERE:
            self.free[:, node] -= self.needs[:, copy, node]
        if self.moves is not None and home != NOWHERE:
            self.moves += (before != home) - (node != home)
        self.at[copy] = node

    def paid(self) -> Floats:
        """What each copy costs where it is."""
        rows = np.arange(len(self.at))
        return np.where(self.at == NOWHERE, self.unplaced, self.costs[rows, self.at])

    def elsewhere(self, copies: Ints) -> Floats:
        """What some copies would cost on each node that has room for them; infinite on others."""
        fits = np.all(self.needs[:, copies] <= self.free[:, None, :], axis=0)
        costs = np.where(fits, self.costs[copies], np.inf)
        for row, copy in enumerate(copies):
            for twin in self.twins[copy]:
                if self.at[twin] != NOWHERE:
                    zones = self.zones[copy]
                    costs[row, zones == zones[self.at[twin]]] = np.inf
        if self.moves is not None and self.moves < 1:
            staying = (self.home[copies] != NOWHERE) & (self.at[copies] == self.home[copies])
            costs[staying] = np.inf
        return costs


def fill(places: Places, prices: Floats, order: Ints) -> None:
    """Put copies that are nowhere where they cost least at the prices of what they take.

    Args:
        places: where copies are.
        prices: resources by nodes: what a unit is worth to others, such as the relaxation's multipliers.
        order: the copies, the most demanding first.
    """
    worth = (places.needs * prices[:, None, :]).sum(axis=0)
    for copy in order:
        costs = places.elsewhere(np.array([copy]))[0] + worth[copy]
        node = int(np.argmin(costs))
        if np.isfinite(costs[node]):
            places.put(int(copy), node)


def improve(places: Places, left: Callable[[], float]) -> None:
    """Shift and swap copies as long as that saves something and there is time."""
    while left() > 0:
        if not _shift(places) and not _swap(places):
            return


def _shift(places: Places) -> bool:
    """The best moves of single copies, each to another node."""
    every = np.arange(len(places.at))
    savings = places.paid()[:, None] - places.elsewhere(every)
    best = savings.argmax(axis=1)
    gains = savings[every, best]
    done = False
    for copy in np.argsort(-gains)[:_ROWS]:
        if gains[copy] <= _LEAST_SAVING:
            break
        now = places.elsewhere(np.array([copy]))[0]
        node = int(np.argmin(now))
        paid = places.unplaced if places.at[copy] == NOWHERE else places.costs[copy, places.at[copy]]
        if paid - now[node] > _LEAST_SAVING:
            places.put(int(copy), node)
            done = True
    return done


def _swap(places: Places) -> bool:
    """The best exchanges of two copies; copies that have twins stay out of it."""
    alone = np.array([not len(twins) for twins in places.twins])
    movable = np.flatnonzero((places.at != NOWHERE) & alone)
    if len(movable) < 2:
        return False
    at, paid = places.at[movable], places.paid()[movable]
    there = places.costs[np.ix_(movable, at)]
    savings = paid[:, None] + paid[None, :] - there - there.T
    for need, free in zip(places.needs, places.free, strict=True):
        wanted = need[np.ix_(movable, at)]
        mine = np.diagonal(wanted)
        fits = wanted <= free[at][None, :] + mine[None, :]
        savings = np.where(fits & fits.T, savings, -np.inf)
    savings[at[:, None] == at[None, :]] = -np.inf
    partner = savings.argmax(axis=1)
    gains = savings[np.arange(len(movable)), partner]
    done, touched = False, set[int]()
    for first in np.argsort(-gains)[:_ROWS]:
        second = int(partner[first])
        nodes = {int(at[first]), int(at[second])}
        if gains[first] <= _LEAST_SAVING:
            break
        if nodes & touched or not _may_swap(places, int(movable[first]), int(movable[second])):
            continue
        touched |= nodes
        one, other = int(movable[first]), int(movable[second])
        here, yonder = int(places.at[one]), int(places.at[other])
        places.put(one, NOWHERE)
        places.put(other, here)
        places.put(one, yonder)
        done = True
    return done


def _may_swap(places: Places, one: int, other: int) -> bool:
    if places.moves is None:
        return True
    leaving = [copy for copy in (one, other) if places.home[copy] != NOWHERE and places.at[copy] == places.home[copy]]
    return places.moves >= len(leaving)
