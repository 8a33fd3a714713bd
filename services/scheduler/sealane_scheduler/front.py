"""The front of latency and price: what each candidate gives and takes, and who is beside the chosen one. Pure."""

from __future__ import annotations

import math

import numpy as np

from sealane_scheduler.decision import Neighbour, Scored
from sealane_scheduler.masks import Mask, Numbers
from sealane_scheduler.scan import Pair, Scan, Scores
from sealane_scheduler.terms import MONEY, PER_MS

#: A difference that is worth telling: milliseconds, and a share of the price.
_MS, _SHARE = 0.05, 0.01


def scored(found: Scores, pair: Pair) -> Scored:
    """A candidate that passed, with its terms."""
    variant, place = pair
    weights = found.weights
    costs = {name: cost if isinstance(cost, float) else cost.item(place) for name, cost in found.costs[variant].items()}
    terms = {name: _rounded(weights[name] * cost) for name, cost in costs.items()}
    return Scored(
        found.fitting.node(place).node,
        found.question.variants[variant].variant,
        round(sum(terms.values()), 6),
        terms,
        round(costs["latency"] / PER_MS, 3),
        round(sum(costs[name] for name in MONEY), 9),
    )


def neighbours(found: Scan, chosen: Pair, winner: Scored) -> tuple[Neighbour, ...]:
    """Who is faster for least more money, and who is cheaper for least more time, if anybody is.

    Args:
        found: what was found.
        chosen: who was chosen.
        winner: the same with its terms.
    """
    latency, price = np.empty_like(found.scores), np.empty_like(found.scores)
    for place, costs in enumerate(found.costs):
        np.multiply(costs["latency"], 1 / PER_MS, out=latency[place])
        np.add(costs["price"], costs["egress"], out=price[place])
        price[place] += costs["energy"]
    passed = np.isfinite(found.scores)
    faster = _first(passed & (latency < latency[chosen] - _MS), price, latency)
    cheaper = _first(passed & (price < price[chosen] * (1 - _SHARE)), latency, price)
    pairs = dict.fromkeys(pair for pair in (faster, cheaper) if pair is not None)
    return tuple(_neighbour(winner, scored(found, pair)) for pair in pairs)


def _first(among: Mask, by: Numbers, then: Numbers) -> Pair | None:
    """Of some candidates the one with the least of one thing, and of those the one with the least of another."""
    pairs = np.flatnonzero(among)
    if not len(pairs):
        return None
    values = by.ravel()[pairs]
    pairs = pairs[values == values.min()]
    variant, place = divmod(int(pairs[np.argmin(then.ravel()[pairs])]), by.shape[1])
    return variant, place


def _rounded(term: float) -> float:
    """In whole millionths, by arithmetic and not by its decimal digits: it is asked for many times a decision."""
    return round(term * 1e6) / 1e6 if math.isfinite(term) else term


def _neighbour(winner: Scored, other: Scored) -> Neighbour:
    time, price = other.latency_ms - winner.latency_ms, other.price - winner.price
    who = other.node if other.variant == winner.variant else f"{other.variant} on {other.node}"
    return Neighbour(other, time, price, f"{who} would be {_time(time)} {_money(winner.price, other.price)}")


def _time(milliseconds: float) -> str:
    if abs(milliseconds) < _MS:
        return "as fast"
    return f"{abs(milliseconds):.3g} ms {'faster' if milliseconds < 0 else 'slower'}"


def _money(now: float, then: float) -> str:
    if abs(then - now) <= _SHARE * now or now == then:
        return "for the same price"
    if not now or not then:
        return f"for {then:.3g} in place of {now:.3g} per 1,000 calls"
    return f"for {then / now:.2g}x the price"
