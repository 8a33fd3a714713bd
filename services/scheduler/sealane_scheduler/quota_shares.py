"""How quotas are divided among those that enforce them: by what was asked of each of late. Pure, and in memory alone.

The shares of one name add up to at most 1. A newcomer that finds all of it given out gets part of a tenth on top, until
the others have asked again and got less: so they never add up to more than 1.1. A share that shrinks does so with the
answer; one that grows gets what is free, and no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sealane.errors import ResourceExhausted

#: Enforcers ask again after so many seconds; sooner while what they hold of a name that others hold too is moving.
REFRESH_SECONDS = 1.0
MOVING_SECONDS = 0.25
#: What an enforcer has not named for so long is taken from it. It has stopped, or has no use for it any more.
LAPSE_SECONDS = 4.0
#: After a start, all that hold something have asked within so many seconds.
LEARNING_SECONDS = 2.5
#: Names that one enforcer may hold; beyond it loses those that it has not named for the longest.
NAMES = 4096
#: Enforcers that are remembered.
ENFORCERS = 4096
#: Part of a quota that is divided evenly, so that whoever has few calls can begin at once with more.
EVEN = 0.1
#: What newcomers may get together beyond the whole.
ALLOWANCE = 0.1
#: A newcomer's share while the scheduler, just started, does not know what others hold.
UNKNOWING = ALLOWANCE / 4
_REMEMBERED_SECONDS = 60.0
_SMOOTHING_SECONDS = 1.5
_SETTLING_SECONDS = 2.0
_LEAST = 1e-6


#: Calls a second of all together below which nobody asks for anything: one in a quarter of an hour.
_IDLE_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class Need:
    """What an enforcer tells of one project or account.

    Args:
        name: of the project or account.
        rate: calls a second that were asked for, refused ones included.
        share: what it gives out now; 0 where it has no share.
    """

    name: str
    rate: float
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an enforcer is told.

    Args:
        shares: in the order of what was asked for; each above 0 and at most 1.
        refresh_after: seconds after which to ask again.
        enforcers: those that have asked within the last minute.
    """

    shares: list[float]
    refresh_after: float
    enforcers: int


@dataclass(slots=True)
class _Holding:
    """An enforcer's part of one quota."""

    share: float
    rate: float
    since: float
    seen: float


class QuotaShares:
    """Who may give out how much of which quota.

    Args:
        started: monotonic time at which this scheduler started. Until the last holder must have asked again, nobody
            gets more than he says he has.
    """

    def __init__(self, started: float) -> None:
        self._knowing_from = started + LEARNING_SECONDS
        self._holders: dict[str, dict[str, _Holding]] = {}
        self._named: dict[str, dict[str, None]] = {}
        """Names of each enforcer, the one named last standing last."""
        self._seen: dict[str, float] = {}
        self._swept = started

    def share(self, enforcer: str, needs: Iterable[Need], now: float) -> Answer:
        """What an enforcer may give out.

        Raises:
            ResourceExhausted: there are too many enforcers.
        """
        self._sweep(now)
        if enforcer not in self._seen and len(self._seen) >= ENFORCERS:
            raise ResourceExhausted(
                f"{ENFORCERS} gateways and workers share quotas; ask again in a minute",
                reason="TOO_MANY_ENFORCERS",
                retry_after=_REMEMBERED_SECONDS,
            )
        self._seen[enforcer] = now
        divided = [self._divide(enforcer, need, now) for need in needs]
        moving = any(moves for _, moves in divided)
        return Answer([share for share, _ in divided], MOVING_SECONDS if moving else REFRESH_SECONDS, len(self._seen))

    def _divide(self, enforcer: str, need: Need, now: float) -> tuple[float, bool]:
        """The share, and whether it is about to change though the demand does not."""
        holders = self._holders.setdefault(need.name, {})
        for lapsed in [each for each, held in holders.items() if held.seen <= now - LAPSE_SECONDS]:
            self._drop(lapsed, need.name)
        self._name(enforcer, need.name)
        knowing = now >= self._knowing_from
        # Dropping the last holder has dropped the name.
        holders = self._holders.setdefault(need.name, holders)
        mine = holders.get(enforcer)
        if mine is None:
            mine = holders[enforcer] = _Holding(0.0 if knowing else need.share, need.rate, now, now)
        else:
            mine.rate += (need.rate - mine.rate) * (1 - math.exp((mine.seen - now) / _SMOOTHING_SECONDS))
            mine.seen = now
        wanted = _wanted(mine, holders)
        mine.share = min(wanted, self._free_for(mine, holders, knowing))
        shared = len(holders) > 1 or not knowing
        return mine.share, shared and (mine.share < 0.9 * wanted or now < mine.since + _SETTLING_SECONDS)

    def _free_for(self, mine: _Holding, holders: dict[str, _Holding], knowing: bool) -> float:
        """The most that it can get now."""
        if not knowing:
            return mine.share or UNKNOWING
        others = sum(each.share for each in holders.values() if each is not mine)
        if mine.share:
            return max(mine.share, 1 - others)
        return max(1 - others, (1 + ALLOWANCE - others) / 2, _LEAST)

    def _name(self, enforcer: str, name: str) -> None:
        """It has just named this one."""
        names = self._named.setdefault(enforcer, {})
        names.pop(name, None)
        names[name] = None
        if len(names) > NAMES:
            self._drop(enforcer, next(iter(names)))

    def _drop(self, enforcer: str, name: str) -> None:
        holders = self._holders[name]
        del holders[enforcer], self._named[enforcer][name]
        if not holders:
            del self._holders[name]
        if not self._named[enforcer]:
            del self._named[enforcer]

    def _sweep(self, now: float) -> None:
        """Forget what nobody asks about any more."""
        if now < self._swept + LAPSE_SECONDS:
            return
        self._swept = now
        silent = now - LAPSE_SECONDS
        lapsed = [(e, name) for name, held in self._holders.items() for e, mine in held.items() if mine.seen <= silent]
        for enforcer, name in lapsed:
            self._drop(enforcer, name)
        self._seen = {each: seen for each, seen in self._seen.items() if seen > now - _REMEMBERED_SECONDS}


def _wanted(mine: _Holding, holders: dict[str, _Holding]) -> float:
    """What it should have: an even part of the tenth that is divided so, and of the rest by its rate."""
    rates = sum(each.rate for each in holders.values())
    # Rates that fade away are told at different times, and their ratio says nothing any more.
    weight = mine.rate / rates if rates > _IDLE_RATE else 1 / len(holders)
    return max(EVEN / len(holders) + (1 - EVEN) * weight, _LEAST)
