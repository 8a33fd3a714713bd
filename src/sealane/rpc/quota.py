"""Quotas of accounts and projects, as their tokens say them, divided among the processes that enforce them.

A token carries the quota of its account and of its project (SECURITY 3.8), so no process has to ask anybody. A process
lets through its share of each. Rates are token buckets that hold two seconds, the "averaged over two seconds" of the
contract; a call is let in while its bucket is not empty, so one larger than the bucket passes and is paid for after.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from sealane.clock import Clock
from sealane.errors import ResourceExhausted, SealaneError
from sealane.rpc.call import Call, Quota
from sealane.rpc.middleware import BodyReader

#: What a bucket holds, in seconds of its rate.
BURST_SECONDS = 2.0
#: Projects and accounts that are remembered; those longest idle give way.
CAPACITY = 8192
#: A part of a quota may have grown after so long: nobody is told to wait longer for it.
SHARES_MOVE_SECONDS = 1.0


class Shares(Protocol):
    """How much of a quota this process may give out."""

    def of(self, name: str) -> float:
        """A share, above 0 and at most 1, of the quota of a project or account."""
        ...


class Whole:
    """This process is the only one that enforces."""

    def of(self, name: str) -> float:
        """All of it."""
        return 1.0


@dataclass(slots=True)
class _Bucket:
    """What is left of a rate."""

    level: float
    time: float

    def fill(self, rate: float, now: float) -> None:
        """Let time pass."""
        self.level = min(self.level + (now - self.time) * rate, rate * BURST_SECONDS)
        self.time = now


@dataclass(slots=True)
class _Usage:
    """What one project or account uses here."""

    requests: _Bucket
    bytes: _Bucket
    inside: int = 0
    asked: int = 0


class QuotaLimits(BodyReader):
    """Refuses calls beyond the caller's quota, and counts what was asked for. Stands behind authorisation.

    Calls from a lane were counted by the gateway and are not counted again.

    Args:
        clock: tells the time.
        shares: how much of each quota this process may give out.
    """

    def __init__(self, clock: Clock, shares: Shares | None = None) -> None:
        self._clock = clock
        self._shares = shares or Whole()
        self._used: dict[str, _Usage] = {}
        self._lock = threading.Lock()

    def before(self, call: Call) -> None:
        """Count the call in at its account and its project, or at neither."""
        held = _quotas(call)
        if not held:
            return
        size, now = len(call.body or b""), self._clock.monotonic()
        with self._lock:
            usages = [(self._usage(name, quota, now), name, quota) for name, quota in held]
            for usage, name, quota in usages:
                # What its account may not do is no demand of the project: it would take the share of other accounts.
                usage.asked += 1
                self._check(usage, name, quota, now)
            for usage, _, quota in usages:
                # What has no limit builds up no debt, for the day on which it gets one.
                usage.requests.level -= 1 if quota.requests_per_second else 0
                usage.bytes.level -= size if quota.bytes_per_second else 0
                usage.inside += 1

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Count it out."""
        with self._lock:
            for name, _ in _quotas(call):
                if (usage := self._used.get(name)) is not None:
                    usage.inside -= 1

    def take_demand(self) -> Mapping[str, int]:
        """Calls asked for since this was last asked: by accounts, and by projects as far as their accounts may."""
        with self._lock:
            demand = {name: usage.asked for name, usage in self._used.items() if usage.asked}
            for usage in self._used.values():
                usage.asked = 0
        return demand

    def _check(self, usage: _Usage, name: str, quota: Quota, now: float) -> None:
        share = self._shares.of(name)
        for bucket, limit in ((usage.requests, quota.requests_per_second), (usage.bytes, quota.bytes_per_second)):
            if limit:
                bucket.fill(limit * share, now)
                if bucket.level <= 0:
                    what = "calls" if bucket is usage.requests else "bytes"
                    raise _exceeded(name, f"{limit:g} {what} a second", _wait(bucket.level, limit, share))
        # Rounded down, so that the parts are not more than the whole; but one call at once is everybody's.
        if quota.concurrent_requests and usage.inside >= max(1, math.floor(quota.concurrent_requests * share + 1e-6)):
            raise _exceeded(name, f"{quota.concurrent_requests} calls at once", 0.05)

    def _usage(self, name: str, quota: Quota, now: float) -> _Usage:
        usage = self._used.pop(name, None)
        if usage is None:
            share = self._shares.of(name)
            usage = _Usage(
                _Bucket(max(quota.requests_per_second * share * BURST_SECONDS, 1.0), now),
                _Bucket(max(quota.bytes_per_second * share * BURST_SECONDS, 1.0), now),
            )
            if len(self._used) >= CAPACITY:
                self._forget()
        self._used[name] = usage  # the one used last stands last
        return usage

    def _forget(self) -> None:
        idle = next((name for name, usage in self._used.items() if not usage.inside), None)
        if idle is not None:
            del self._used[idle]


def _quotas(call: Call) -> tuple[tuple[str, Quota], ...]:
    return () if call.identity is None or call.peer.via_gateway else call.identity.charged


def _wait(level: float, limit: float, share: float) -> float:
    wait = max(0.01, (1e-9 - level) / (limit * share))
    return wait if share >= 1 else min(wait, max(SHARES_MOVE_SECONDS, (1e-9 - level) / limit))


def _exceeded(name: str, quota: str, retry_after: float) -> ResourceExhausted:
    return ResourceExhausted(
        f"the quota of {name} is {quota}; back off and retry, or ask an admin for more",
        reason="QUOTA_EXCEEDED",
        retry_after=min(retry_after, 30.0),
        quota=name,
    )
