"""A quota holds in the long run, at once, and for each of account and project; the rest of the world is not touched."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealane.clock import ManualClock
from sealane.errors import ResourceExhausted
from sealane.rpc import quota as quotas
from sealane.rpc.call import Identity, Peer, Quota
from sealane.rpc.quota import BURST_SECONDS, QuotaLimits

NONE = Quota()


def call(account: Quota = NONE, project: Quota = NONE, subject: str = "a", body: bytes = b"", lane: bool = False):
    identity = Identity(subject, "p", quota=(account, project))
    return SimpleNamespace(identity=identity, body=body, peer=Peer(via_gateway=lane))


class Half:
    def of(self, name: str) -> float:
        return 0.5


def passed(limits: QuotaLimits, wanted: object, count: int) -> int:
    made = 0
    for _ in range(count):
        try:
            limits.before(wanted)  # type: ignore[arg-type]
        except ResourceExhausted:
            continue
        limits.after(wanted, None)  # type: ignore[arg-type]
        made += 1
    return made


@given(st.floats(0.5, 50), st.lists(st.tuples(st.floats(0, 3), st.integers(1, 40)), min_size=1, max_size=30))
def test_a_rate_holds_whatever_comes_when(rate: float, bursts: list[tuple[float, int]]) -> None:
    clock = ManualClock()
    limits, wanted = QuotaLimits(clock), call(Quota(requests_per_second=rate))
    made, elapsed = 0, 0.0
    for pause, count in bursts:
        clock.advance(pause)
        elapsed += pause
        made += passed(limits, wanted, count)
    assert made <= rate * (elapsed + BURST_SECONDS) + 2


def test_a_steady_caller_below_its_rate_is_never_refused() -> None:
    clock = ManualClock()
    limits, wanted = QuotaLimits(clock), call(Quota(requests_per_second=10))
    for _ in range(300):
        clock.advance(0.101)
        assert passed(limits, wanted, 1) == 1


def test_a_share_of_the_quota_is_what_this_process_gives_out() -> None:
    clock = ManualClock()
    limits, wanted = QuotaLimits(clock, Half()), call(Quota(10, 0, 4))
    assert passed(limits, wanted, 100) == 10  # two seconds of five a second
    clock.advance(1.0)
    assert passed(limits, wanted, 100) == 5


def test_calls_at_once_are_not_rounded_up_to_more_than_the_whole_but_one_is_everybodys() -> None:
    for whole, part in ((5, 2), (3, 1), (1, 1)):
        limits, wanted = QuotaLimits(ManualClock(), Half()), call(Quota(concurrent_requests=whole))
        for _ in range(part):
            limits.before(wanted)
        with pytest.raises(ResourceExhausted):
            limits.before(wanted)


def test_who_has_but_a_part_is_not_told_to_wait_longer_than_the_whole_would_need() -> None:
    waits = []
    for shares in (None, Half()):
        limits, wanted = QuotaLimits(ManualClock(), shares), call(Quota(bytes_per_second=100), body=b"x" * 450)
        limits.before(wanted)
        with pytest.raises(ResourceExhausted) as caught:
            limits.before(wanted)
        waits.append(caught.value.retry_after)
    assert waits == [pytest.approx(2.5), pytest.approx(3.5)]  # of 250 and of 350 bytes too many, at 100 a second


def test_a_limit_that_comes_later_does_not_charge_what_was_free_before() -> None:
    clock = ManualClock()
    limits = QuotaLimits(clock)
    assert passed(limits, call(Quota(10_000), body=b"x" * 1000), 500) == 500
    clock.advance(1.0)
    assert passed(limits, call(Quota(10, 1000), body=b"x"), 5) == 5


def test_bytes_are_paid_for_after_a_call_that_is_larger_than_the_bucket() -> None:
    clock = ManualClock()
    limits, wanted = QuotaLimits(clock), call(Quota(bytes_per_second=100), body=b"x" * 500)
    assert passed(limits, wanted, 3) == 1
    with pytest.raises(ResourceExhausted) as caught:
        limits.before(wanted)
    assert caught.value.reason == "QUOTA_EXCEEDED" and caught.value.retry_after == pytest.approx(3.0)
    assert caught.value.metadata["quota"] == "a"
    clock.advance(3.1)
    assert passed(limits, wanted, 3) == 1


def test_calls_at_once_come_back_when_they_end() -> None:
    limits, wanted = QuotaLimits(ManualClock()), call(Quota(concurrent_requests=2))
    limits.before(wanted)
    limits.before(wanted)
    with pytest.raises(ResourceExhausted, match="2 calls at once"):
        limits.before(wanted)
    limits.after(wanted, None)
    limits.before(wanted)


def test_a_project_is_all_its_accounts_and_a_refusal_takes_nothing() -> None:
    limits = QuotaLimits(ManualClock())
    one, two = (call(Quota(100, 0, 0), Quota(5, 0, 0), subject) for subject in ("a", "b"))
    assert passed(limits, one, 6) == 6
    assert passed(limits, two, 10) == 4  # ten of the project within its first two seconds
    with pytest.raises(ResourceExhausted) as caught:
        limits.before(two)
    assert caught.value.metadata["quota"] == "projects/p"


def test_who_has_none_and_who_came_over_a_lane_are_not_counted() -> None:
    limits = QuotaLimits(ManualClock())
    assert passed(limits, call(), 1000) == 1000
    assert passed(limits, call(Quota(1, 0, 1), lane=True), 1000) == 1000
    assert limits.take_demand() == {}
    limits.before(SimpleNamespace(identity=None, body=b"", peer=Peer()))  # type: ignore[arg-type]


def test_demand_counts_what_was_asked_for_once_and_for_the_project_what_its_accounts_may() -> None:
    limits, wanted = QuotaLimits(ManualClock()), call(Quota(1, 0, 0), Quota(100, 0, 0))
    assert passed(limits, wanted, 7) == 2
    assert limits.take_demand() == {"a": 7, "projects/p": 2}
    assert passed(limits, call(Quota(100, 0, 0), Quota(1, 0, 0), "b"), 7) == 2
    assert limits.take_demand() == {"b": 7, "projects/p": 7}
    assert limits.take_demand() == {}


def test_the_idle_are_forgotten_and_those_inside_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "CAPACITY", 3)
    limits, busy = QuotaLimits(ManualClock()), call(Quota(concurrent_requests=1), subject="busy")
    limits.before(busy)
    for index in range(20):
        passed(limits, call(Quota(1, 0, 0), subject=f"s{index}"), 1)
    with pytest.raises(ResourceExhausted):
        limits.before(busy)
