"""Jobs: one recorded result whatever workers do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from sealane.clock import ManualClock
from sealane.errors import Aborted
from sealane.records import tables
from sealane.records.tables import Actor
from sealane_scheduler.jobs import ENDED, MAX_ATTEMPTS, JobRules, Outcome, refused
from sealane_scheduler.store import JobRow
from sealane_scheduler.store_sql import SqlStore, metadata

WHO = Actor("admin", "p")
GOOD = Outcome(results=b"r", source_accuracy=0.98, accuracies=[("int8", 0.97)], max_drop=0.02)


@pytest.fixture
def store() -> Iterator[SqlStore]:
    yield from make_store()


def make_store() -> Iterator[SqlStore]:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        metadata.create_all(connection)
        tables.metadata.create_all(connection)
        yield SqlStore(connection)
    engine.dispose()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def rules(clock: ManualClock) -> JobRules:
    return JobRules(clock, lease_seconds=10.0)


def started(store: SqlStore, rules: JobRules, node: str = "n1") -> JobRow:
    row = rules.claim(store, rules.create(store, WHO, b"spec"), node)
    assert row is not None
    return row


def test_a_job_runs_once_and_registers(store: SqlStore, rules: JobRules) -> None:
    row = started(store, rules)
    assert (row.state, row.attempt, row.node) == ("RUNNING", 1, "n1")
    assert rules.claim(store, replace(row, state="PENDING"), "n2") is None
    ended = rules.finish(store, row, GOOD)
    assert ended.state == "REGISTERING"
    rules.registered(store, rules.get(store, "p", row.job), b"done")
    assert rules.get(store, "p", row.job).state == "SUCCEEDED"


def test_a_task_that_is_taken_back_often_is_no_failure(store: SqlStore, rules: JobRules) -> None:
    row = started(store, rules)
    for _ in range(MAX_ATTEMPTS + 1):
        rules.take_back(store, {"another"})
        assert rules.get(store, "p", row.job).state == "RUNNING"
        rules.take_back(store, {"n1"})
        with pytest.raises(Aborted):
            rules.finish(store, row, GOOD)
        again = rules.claim(store, rules.get(store, "p", row.job), "n1")
        assert again is not None
        row = again
    assert rules.finish(store, row, GOOD).state == "REGISTERING"


def test_a_worker_that_lost_its_lease_writes_nothing(store: SqlStore, rules: JobRules, clock: ManualClock) -> None:
    old = started(store, rules)
    clock.advance(11)
    assert rules.expire(store) == 1
    new = rules.claim(store, rules.get(store, "p", old.job), "n2")
    assert new is not None and new.attempt == 2
    with pytest.raises(Aborted) as caught:
        rules.finish(store, old, replace_results(b"zombie"))
    assert caught.value.reason == "FENCED"
    with pytest.raises(Aborted):
        rules.renew(store, old, 0.5, "still here")
    rules.finish(store, new, GOOD)
    assert rules.get(store, "p", old.job).results == b"r"


def replace_results(results: bytes) -> Outcome:
    return replace(GOOD, results=results)


def test_the_same_attempt_of_another_node_is_fenced_too(store: SqlStore, rules: JobRules) -> None:
    row = started(store, rules)
    with pytest.raises(Aborted):
        rules.finish(store, replace(row, node="n9"), GOOD)


def test_renewing_keeps_the_lease(store: SqlStore, rules: JobRules, clock: ManualClock) -> None:
    row = started(store, rules)
    for _ in range(5):
        clock.advance(9)
        rules.renew(store, row, 0.5, "half")
        assert rules.expire(store) == 0
    assert rules.get(store, "p", row.job).progress == 0.5


def test_it_is_given_up_after_its_last_attempt(store: SqlStore, rules: JobRules, clock: ManualClock) -> None:
    row = started(store, rules)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert row.attempt == attempt
        clock.advance(11)
        rules.expire(store)
        row = rules.claim(store, rules.get(store, "p", row.job), f"n{attempt}") or rules.get(store, "p", row.job)
    assert row.state == "ABANDONED" and "lease" in row.error


def test_the_accuracy_gate_refuses_a_large_drop(store: SqlStore, rules: JobRules) -> None:
    row = started(store, rules)
    ended = rules.finish(store, row, replace(GOOD, accuracies=[("float", 0.98), ("int8", 0.90)]))
    assert ended.state == "FAILED" and "int8 fell by 0.0800" in ended.error
    assert refused(replace(GOOD, accuracies=[("int8", 0.96)])) == ""


def test_cancel_wins_over_a_late_finish(store: SqlStore, rules: JobRules) -> None:
    row = started(store, rules)
    assert rules.cancel(store, WHO, row.job).state == "CANCELLED"
    with pytest.raises(Aborted):
        rules.finish(store, row, GOOD)
    assert rules.cancel(store, WHO, row.job).state == "CANCELLED"


STEPS = st.lists(
    st.tuples(st.sampled_from(["claim", "renew", "finish", "fail", "expire", "cancel", "wait"]), st.integers(1, 4)),
    max_size=30,
)


@given(STEPS)
def test_whatever_happens_one_result_is_recorded_by_the_highest_attempt(steps: list[tuple[str, int]]) -> None:
    clock = ManualClock()
    rules = JobRules(clock, 10.0)
    for store in make_store():
        job = rules.create(store, WHO, b"").job
        accepted: list[int] = []
        for action, attempt in steps:
            row = rules.get(store, "p", job)
            before = row.state
            held = replace(row, attempt=attempt, node=f"n{attempt}")
            try:
                if action == "claim":
                    rules.claim(store, row, f"n{row.attempt + 1}")
                elif action == "renew":
                    rules.renew(store, held, 0.1, "")
                elif action == "finish":
                    rules.finish(store, held, replace(GOOD, results=bytes([attempt])))
                    accepted.append(attempt)
                elif action == "fail":
                    rules.finish(store, held, Outcome(error="x", retryable=True))
                elif action == "expire":
                    rules.expire(store)
                elif action == "cancel":
                    rules.cancel(store, WHO, job)
                else:
                    clock.advance(6)
            except Aborted:
                pass
            after = rules.get(store, "p", job)
            assert after.attempt >= row.attempt
            if before in ENDED:
                assert after.state == before
        assert len(accepted) <= 1
        if accepted:
            final = rules.get(store, "p", job)
            assert final.results == bytes([accepted[0]]) and final.attempt == accepted[0]


BAD = {
    "no source": {"source_accuracy": None},
    "nothing new": {"accuracies": []},
    "nan": {"accuracies": [("int8", float("nan"))]},
    "nan source": {"source_accuracy": float("nan")},
    "beyond one": {"accuracies": [("int8", 42.0)]},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_gate_without_figures_refuses(change: dict[str, object]) -> None:
    assert refused(replace(GOOD, **change))  # type: ignore[arg-type]


def test_a_job_whose_node_is_done_is_no_longer_cancelled(store: SqlStore, rules: JobRules) -> None:
    row = started(store, rules)
    rules.finish(store, row, GOOD)
    assert rules.cancel(store, WHO, row.job).state == "REGISTERING"
