"""Jobs of many tasks: each recorded once whatever nodes do, and every job ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sealane.clock import ManualClock
from sealane.errors import Aborted, FailedPrecondition
from sealane.records import tables
from sealane.records.tables import Actor
from sealane_scheduler.jobs import ENDED
from sealane_scheduler.store import JobRow
from sealane_scheduler.store_sql import METADATA, SqlStore
from sealane_scheduler.task_store import AttemptRow, TaskRow
from sealane_scheduler.tasks import LAST_WAIT, MAX_ATTEMPTS, MAX_LOG, TaskOutcome, TaskRules, estimated_end

WHO = Actor("admin", "p")
LEASE = 10.0
WANTED = JobRow("", "", "", b"spec", 0.0, 0.0, "", kind="batch")


def joined(job: JobRow, outputs: Sequence[bytes]) -> bytes:
    return b",".join(outputs)


class Site:
    def __init__(self) -> None:
        self.engine = sa.create_engine("sqlite://")
        self.connection = self.engine.connect()
        for metadata in (*METADATA, tables.metadata):
            metadata.create_all(self.connection)
        self.store, self.clock = SqlStore(self.connection), ManualClock()
        self.rules = TaskRules(self.clock, LEASE, joined)

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()

    def job(self, tasks: int = 2, **wanted: object) -> JobRow:
        rows = [TaskRow("", "", 0, rows=1, input=str(index).encode()) for index in range(tasks)]
        return self.rules.create(self.store, WHO, replace(WANTED, **wanted), rows)  # type: ignore[arg-type]

    def again(self, job: JobRow) -> JobRow:
        return self.store.jobs(job.project, "", 1, only=job.job)[0]

    def task(self, job: JobRow, number: int = 0) -> TaskRow:
        found = self.store.task(job.project, job.job, number)
        assert found is not None
        return found

    def give(self, job: JobRow, node: str = "n1", number: int = 0) -> AttemptRow:
        (attempt,) = self.rules.give_out(self.store, job, [(self.task(job, number), node)])
        return attempt

    def tell(self, held: AttemptRow, output: bytes = b"out", error: str = "", retryable: bool = True) -> JobRow | None:
        outcome = TaskOutcome(error, retryable, b"" if error else output, "said\n")
        return self.rules.finish(self.store, held, lambda job, task: outcome)

    def finish(self, held: AttemptRow, output: bytes = b"out", error: str = "", retryable: bool = True) -> JobRow:
        ended = self.tell(held, output, error, retryable)
        assert ended is not None, "it was told before"
        return ended

    def expire(self) -> list[AttemptRow]:
        return self.rules.expire(self.store)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def test_a_job_ends_with_its_last_task(site: Site) -> None:
    job = site.job(2)
    assert (job.state, job.tasks_total) == ("PENDING", 2)
    first, second = site.give(job, "n1", 0), site.give(job, "n2", 1)
    assert site.again(job).state == "RUNNING" and site.again(job).tasks_running == 2
    site.clock.advance(4)
    assert site.finish(first, b"a").state == "RUNNING"
    assert site.again(job).progress == 0.5
    assert estimated_end(site.again(job), site.clock.now()) == pytest.approx(site.clock.now() + 4)
    ended = site.finish(second, b"b")
    assert (ended.state, ended.results, ended.tasks_succeeded) == ("SUCCEEDED", b"a,b", 2)
    assert [item.log for item in site.store.attempts("p", job.job, 0)] == ["said\n"]


def test_a_measuring_job_tells_the_registry_before_it_has_succeeded(site: Site) -> None:
    job = site.job(1, kind="evaluate")
    assert site.finish(site.give(job)).state == "REGISTERING"


def test_a_zombie_writes_nothing(site: Site) -> None:
    job = site.job(1)
    old = site.give(job)
    site.clock.advance(LEASE + 1)
    assert [item.key for item in site.expire()] == [old.key]
    site.clock.advance(1)
    new = site.give(site.again(job), "n2")
    assert new.attempt == 2
    for call in (lambda: site.finish(old, b"late"), lambda: site.rules.renew(site.store, old, 0.9, "")):
        with pytest.raises(Aborted) as told:
            call()
        assert told.value.reason == "FENCED"
    assert site.finish(new, b"right").results == b"right"
    with pytest.raises(Aborted):
        site.finish(old, b"later still")
    assert [item.state for item in site.store.attempts("p", job.job, 0)] == ["LOST", "SUCCEEDED"]


def test_a_task_that_is_taken_back_has_not_failed_and_its_node_writes_nothing(site: Site) -> None:
    job = site.job(2, attempts_allowed=1)
    old, other = site.give(job, "n1", 0), site.give(job, "n2", 1)
    site.rules.take_back(site.store, {"n1"})
    assert (site.task(job).state, site.task(job).failures) == ("PENDING", 0)
    assert site.task(job, 1).state == "RUNNING", "another node's"
    with pytest.raises(Aborted):
        site.finish(old, b"late")
    site.finish(site.give(site.again(job), "n2", 0), b"a")
    assert site.finish(other, b"b").results == b"a,b"
    assert [item.state for item in site.store.attempts("p", job.job, 0)] == ["STOPPED", "SUCCEEDED"]


def test_an_attempt_belongs_to_its_node(site: Site) -> None:
    held = site.give(site.job(1))
    with pytest.raises(Aborted):
        site.finish(replace(held, node="n9"))
    with pytest.raises(Aborted):
        site.finish(replace(held, attempt=7))


def test_a_result_that_is_told_twice_counts_once(site: Site) -> None:
    job = site.job(2)
    held = site.give(job)
    site.finish(held, b"right")
    assert site.tell(held, b"another") is None, "the answer to the first was lost: it is no error, and changes nothing"
    assert site.task(job).output == b"right" and site.again(job).tasks_succeeded == 1
    with pytest.raises(Aborted):
        site.tell(held, error="broken after all")


def test_a_task_is_given_once(site: Site) -> None:
    job = site.job(1)
    task = site.task(job)
    assert len(site.rules.give_out(site.store, job, [(task, "n1"), (task, "n2")])) == 1


def test_it_waits_longer_after_each_failure_and_is_then_poison(site: Site) -> None:
    job, waits = site.job(2, attempts_allowed=9), []
    for _ in range(8):
        site.finish(site.give(site.again(job)), error="broken")
        waits.append(site.task(job).not_before - site.clock.now())
        site.clock.advance(waits[-1])
        assert [item.task for item in site.store.waiting("p", job.job, site.clock.now(), 9)] == [0, 1]
    assert waits[:3] == [0.5, 1.0, 2.0] and waits[-1] == LAST_WAIT
    ended = site.finish(site.give(site.again(job)), error="broken again")
    assert ended.state == "FAILED" and "task 0 failed 9 times, last: broken again" in ended.error
    assert site.task(job, 1).state == "CANCELLED"


def test_a_fault_that_stays_is_not_tried_again(site: Site) -> None:
    job = site.job(2)
    other = site.give(job, "n2", 1)
    ended = site.finish(site.give(site.again(job)), error="rows do not fit", retryable=False)
    assert ended.state == "FAILED"
    with pytest.raises(Aborted):
        site.finish(other)


def test_of_two_attempts_the_first_to_end_counts(site: Site) -> None:
    job = site.job(1)
    slow, fast = site.give(job, "n1"), site.give(site.again(job), "n2")
    assert (slow.attempt, fast.attempt) == (1, 2)
    assert site.finish(fast, b"fast").state == "SUCCEEDED"
    with pytest.raises(Aborted):
        site.finish(slow, b"slow")
    assert site.again(job).results == b"fast"
    assert [item.state for item in site.store.attempts("p", job.job, 0)] == ["STOPPED", "SUCCEEDED"]


def test_the_failure_of_one_of_two_attempts_leaves_the_other(site: Site) -> None:
    job = site.job(1)
    first, second = site.give(job, "n1"), site.give(site.again(job), "n2")
    assert site.finish(first, error="broken").state == "RUNNING"
    assert site.task(job).state == "RUNNING"
    assert site.finish(second, b"good").state == "SUCCEEDED"


def test_the_last_failure_that_is_allowed_leaves_an_attempt_that_is_under_way(site: Site) -> None:
    job = site.job(1, attempts_allowed=1)
    lost = site.give(job, "n1")
    site.clock.advance(LEASE / 2)
    copy = site.give(job, "n2")
    site.clock.advance(LEASE * 0.6)
    assert [item.key for item in site.expire()] == [lost.key]
    assert (site.again(job).state, site.task(job).state) == ("RUNNING", "RUNNING")
    assert site.finish(copy).state == "SUCCEEDED"


def test_the_last_of_several_attempts_to_fail_ends_the_job(site: Site) -> None:
    job = site.job(1, attempts_allowed=1)
    first, second = site.give(job, "n1"), site.give(job, "n2")
    assert site.finish(first, error="broken").state == "RUNNING"
    assert site.finish(second, error="broken").state == "FAILED"


def test_slow_ones_are_told_by_those_that_are_done(site: Site) -> None:
    job = site.job(5)
    for number in range(3):
        held = site.give(site.again(job), "n1", number)
        site.clock.advance(1)
        site.finish(held)
    late, fresh = site.give(site.again(job), "n1", 3), site.give(site.again(job), "n2", 4)
    site.clock.advance(1.9)
    assert site.rules.slow(site.store, job, [late, fresh]) == []
    site.clock.advance(0.2)
    fresh = replace(fresh, begin_time=site.clock.now())
    assert site.rules.slow(site.store, job, [late, fresh]) == [late]
    assert site.rules.slow(site.store, job, [late, replace(late, attempt=2)]) == [], "it has a second one already"


def test_pause_and_resume(site: Site) -> None:
    job = site.job(2)
    held = site.give(job)
    assert site.rules.pause(site.store, WHO, job).state == "PAUSED"
    assert site.rules.give_out(site.store, site.again(job), [(site.task(job, 1), "n2")]) == []
    site.finish(held)
    assert site.again(job).state == "PAUSED" and site.again(job).tasks_succeeded == 1
    assert site.rules.resume(site.store, WHO, job).state == "RUNNING"
    assert site.finish(site.give(site.again(job), "n2", 1)).state == "SUCCEEDED"
    assert site.rules.resume(site.store, WHO, job).state == "SUCCEEDED"
    with pytest.raises(FailedPrecondition):
        site.rules.pause(site.store, WHO, replace(job, kind="optimise"))


def test_nobody_knows_when_a_paused_job_will_have_ended(site: Site) -> None:
    job = site.job(2)
    held = site.give(job)
    site.clock.advance(1.0)
    site.finish(held)
    assert estimated_end(site.again(job), site.clock.now()) > 0
    paused = site.rules.pause(site.store, WHO, site.again(job))
    assert estimated_end(paused, site.clock.now()) == 0


def test_a_paused_job_ends_with_what_was_under_way(site: Site) -> None:
    job = site.job(1)
    held = site.give(job)
    site.rules.pause(site.store, WHO, job)
    assert site.finish(held).state == "SUCCEEDED"


def test_cancel_stops_all(site: Site) -> None:
    job = site.job(3)
    held = site.give(job)
    site.finish(site.give(site.again(job), "n2", 1))
    assert site.rules.cancel(site.store, WHO, job).state == "CANCELLED"
    with pytest.raises(Aborted):
        site.finish(held)
    assert [site.task(job, number).state for number in range(3)] == ["CANCELLED", "SUCCEEDED", "CANCELLED"]
    assert site.rules.cancel(site.store, WHO, job).state == "CANCELLED"


def test_renewing_keeps_the_lease_and_the_end_of_the_log(site: Site) -> None:
    held = site.give(site.job(1))
    for _ in range(5):
        site.clock.advance(9)
        site.rules.renew(site.store, held, 0.5, "x" * 9000 + "\n")
        assert site.expire() == []
    (kept,) = site.store.attempts("p", held.job, 0)
    assert kept.progress == 0.5 and len(kept.log) == MAX_LOG


def test_a_scheduler_that_was_away_takes_nothing_back(site: Site) -> None:
    held = site.give(site.job(1))
    site.clock.advance(1000)
    assert [item.key for item in site.rules.extend_all(site.store)] == [held.key]
    assert site.expire() == []
    assert site.finish(held).state == "SUCCEEDED"


class Nodes(RuleBasedStateMachine):
    """Nodes that die, wake late, and say things twice; and a caller who pauses and cancels."""

    def __init__(self) -> None:
        super().__init__()
        self.site = Site()
        self.job = self.site.job(4, attempts_allowed=20)
        self.given: list[AttemptRow] = []
        self.recorded: dict[int, bytes] = {}

    def teardown(self) -> None:
        self.site.close()

    @property
    def state(self) -> str:
        return self.site.again(self.job).state

    @rule(number=st.integers(0, 3), node=st.sampled_from(["n1", "n2", "n3"]))
    def give(self, number: int, node: str) -> None:
        self.given += self.site.rules.give_out(
            self.site.store, self.site.again(self.job), [(self.site.task(self.job, number), node)]
        )

    @precondition(lambda self: self.given)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        held = data.draw(st.sampled_from(self.given))
        output = f"{held.task}/{held.attempt}".encode()
        try:
            ended = self.site.tell(held, output, "broken" if fails else "")
        except Aborted:
            return
        if ended is None:
            assert self.recorded[held.task] == output and not fails, "a repeat of what is recorded"
        elif not fails:
            assert held.task not in self.recorded, "a task is recorded once"
            self.recorded[held.task] = output

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        try:
            self.site.rules.renew(self.site.store, data.draw(st.sampled_from(self.given)), 0.5, "")
        except Aborted:
            return

    @rule(seconds=st.floats(0.1, 2 * LEASE))
    def wait(self, seconds: float) -> None:
        self.site.clock.advance(seconds)
        self.site.expire()

    @rule()
    def restart(self) -> None:
        self.site.rules.extend_all(self.site.store)

    @rule()
    def pause(self) -> None:
        self.site.rules.pause(self.site.store, WHO, self.job)

    @rule()
    def resume(self) -> None:
        self.site.rules.resume(self.site.store, WHO, self.job)

    @invariant()
    def what_was_recorded_stays_and_nothing_else_counts(self) -> None:
        store = self.site.store
        row = self.site.again(self.job)
        for number in range(4):
            task = self.site.task(self.job, number)
            attempts = store.attempts("p", self.job.job, number)
            won = [item for item in attempts if item.state == "SUCCEEDED"]
            running = [item for item in attempts if item.state == "RUNNING"]
            assert (task.state == "SUCCEEDED") == (number in self.recorded) == (len(won) == 1)
            assert task.output == self.recorded.get(number, b"")
            assert bool(running) == (task.state == "RUNNING")
            assert task.attempt == len(attempts) == max([item.attempt for item in attempts], default=0)
        assert row.tasks_succeeded == len(self.recorded)
        assert (row.state == "SUCCEEDED") == (len(self.recorded) == 4)
        if row.state in ENDED:
            assert not store.running()


TestNodes = Nodes.TestCase
TestNodes.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("attempts", [0, 1, 2])
def test_the_number_of_attempts_is_the_jobs_or_the_usual_one(site: Site, attempts: int) -> None:
    job = site.job(1, attempts_allowed=attempts)
    for _ in range(attempts or MAX_ATTEMPTS):
        assert site.again(job).state in ("PENDING", "RUNNING")
        site.finish(site.give(site.again(job)), error="broken")
        site.clock.advance(LAST_WAIT)
    assert site.again(job).state == "FAILED"
