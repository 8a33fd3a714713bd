"""Who gets a place next: priority, share, age; gangs whole, second tries elsewhere, data where it may be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sealane_scheduler.filters import NodeView, VariantView
from sealane_scheduler.store import JobRow
from sealane_scheduler.task_queue import Given, Queued, assign, why_waiting
from sealane_scheduler.task_store import TaskRow
from sealane_scheduler.tasks import Execution

VARIANT = VariantView("v", "LITERT", "INT8", 1000, "sha256:1")


def node(name: str, tier: str = "cloud", zone: str = "eu", clearance: str = "internal", **more: object) -> NodeView:
    runtimes = {"litert": frozenset({"LITERT"})}
    return NodeView(name, tier, zone, clearance, True, **{"runtimes": runtimes, "sandbox": "full", **more})  # type: ignore[arg-type]


def job(name: str, tasks: int, project: str = "p", age: float = 0.0, **more: object) -> Queued:
    row = JobRow(project, name, "PENDING", b"", age, age, "", tasks_total=tasks)
    execution = more.pop("execution", Execution())
    waiting = [TaskRow(project, name, number, variant="v") for number in range(tasks)]
    return Queued(row, execution, {"v": VARIANT}, waiting, **more)  # type: ignore[arg-type]


def by_job(given_: list[Given]) -> Counter[str]:
    return Counter(item.row.job for item in given_)


NODES = [node("a"), node("b")]


def test_the_higher_priority_goes_first_then_the_older() -> None:
    low, high = job("low", 9, age=1), job("high", 3, age=9, execution=Execution(priority=5))
    found = assign([low, high], NODES, {"a": 2, "b": 2})
    assert by_job(found) == {"high": 3, "low": 1}
    old, young = job("old", 9, age=1), job("young", 9, age=2)
    assert by_job(assign([young, old], NODES, {"a": 1, "b": 0})) == {"old": 1}


def test_projects_share_what_there_is() -> None:
    queue = [job("mine", 100, "p", 1), job("mine-too", 100, "p", 2), job("yours", 100, "q", 3)]
    found = by_job(assign(queue, NODES, {"a": 4, "b": 4}))
    assert found["yours"] == 4 and found["mine"] + found["mine-too"] == 4
    busy = job("mine", 100, "p", 1, running={"a": 3})
    found = by_job(assign([busy, job("yours", 100, "q", 3)], NODES, {"a": 1, "b": 2}))
    assert found == {"yours": 3}


def test_work_is_spread_over_nodes() -> None:
    assert {item.node for item in assign([job("j", 2)], NODES, {"a": 2, "b": 2})} == {"a", "b"}


def test_no_more_than_allowed_at_the_same_time() -> None:
    execution = Execution(max_parallel=3)
    assert len(assign([job("j", 9, execution=execution)], NODES, {"a": 9, "b": 9})) == 3
    under_way = job("j", 9, execution=execution, running={"a": 2})
    assert len(assign([under_way], NODES, {"a": 9, "b": 9})) == 1


def test_a_gang_begins_whole_or_not_at_all() -> None:
    gang = job("g", 4, execution=Execution(gang=4))
    assert assign([gang], NODES, {"a": 2, "b": 1}) == []
    assert len(assign([gang], NODES, {"a": 2, "b": 2})) == 4
    # Others do not wait for it.
    assert by_job(assign([gang, job("other", 9, age=5)], NODES, {"a": 2, "b": 1})) == {"other": 3}
    # Once it runs, one after the other may be tried again.
    assert len(assign([replace(gang, running={"a": 3})], NODES, {"a": 1, "b": 0})) == 1


def test_data_stays_where_it_may_be() -> None:
    nodes = [node("cloud"), node("edge", "edge", "site", "restricted"), node("bare", runtimes={})]
    kept = job("k", 9, execution=Execution(data_class="restricted", residency=("site",)))
    assert {item.node for item in assign([kept], nodes, {"cloud": 5, "edge": 5, "bare": 5})} == {"edge"}
    assert "bare" not in {item.node for item in assign([job("j", 99)], nodes, {"cloud": 5, "edge": 5, "bare": 5})}
    dead = [replace(node("a"), alive=False)]
    assert assign([job("j", 1)], dead, {"a": 2}) == []


def test_a_task_is_tried_again_elsewhere_where_there_is_an_elsewhere() -> None:
    failed = job("j", 1, failed_on={0: frozenset({"a"})})
    assert [item.node for item in assign([failed], NODES, {"a": 2, "b": 1})] == ["b"]
    assert assign([failed], NODES, {"a": 2, "b": 0}) == [], "it waits for the other one"
    assert [item.node for item in assign([failed], [node("a")], {"a": 1})] == ["a"], "there is no other one"


def test_a_task_that_fits_nowhere_holds_up_none_behind_it() -> None:
    other = VariantView("t", "TENSORRT", "INT8", 1000, "sha256:2")
    measured = replace(
        job("j", 0),
        variants={"t": other, "v": VARIANT},
        waiting=[TaskRow("p", "j", 0, variant="t"), TaskRow("p", "j", 1, variant="v")],
    )
    assert [item.task.task for item in assign([measured], NODES, {"a": 1, "b": 0})] == [1]
    waits_for_b = job("j", 3, failed_on={0: frozenset({"a"})})
    assert [item.task.task for item in assign([waits_for_b], NODES, {"a": 2, "b": 0})] == [1, 2]


def test_a_second_copy_is_never_on_the_same_node() -> None:
    slow = TaskRow("p", "j", 7, "RUNNING", variant="v")
    wanted = job("j", 0, slow=[slow], running={"a": 1}, failed_on={7: frozenset({"a"})})
    assert [(item.task.task, item.node) for item in assign([wanted], NODES, {"a": 1, "b": 1})] == [(7, "b")]
    assert assign([wanted], [node("a")], {"a": 1}) == []


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from("pqr"), st.integers(-1, 1), st.integers(0, 3)), max_size=6),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
def test_whatever_waits_no_place_is_taken_twice_and_none_is_left(
    wanted: list[tuple[int, str, int, int]], places: list[int]
) -> None:
    queue = [
        job(f"j{index}", count, project, float(index), execution=Execution(priority=priority, max_parallel=most))
        for index, (count, project, priority, most) in enumerate(wanted)
    ]
    nodes = [node(f"n{index}") for index in range(len(places))]
    free = {f"n{index}": count for index, count in enumerate(places)}
    found = assign(queue, nodes, free)
    assert all(count <= free[name] for name, count in Counter(item.node for item in found).items())
    assert len({(item.row.job, item.task.task) for item in found}) == len(found)
    able = sum(min(count, most or count) for count, _, _, most in wanted)
    assert len(found) == min(able, sum(places)), "a place stays free only where nothing fits"
    assert found == assign(list(reversed(queue)), nodes, free), "the order of asking does not matter"


def test_a_gang_waits_for_those_of_it_that_are_to_be_tried_again() -> None:
    gang = job("g", 4, execution=Execution(gang=4))
    assert assign([replace(gang, waiting=gang.waiting[:1])], NODES, {"a": 4, "b": 4}) == []
    left = replace(gang, row=replace(gang.row, tasks_succeeded=3), waiting=gang.waiting[:1])
    assert len(assign([left], NODES, {"a": 4, "b": 4})) == 1, "one task is all that is left"


def test_a_gang_gets_its_places_from_lower_jobs_as_they_become_free() -> None:
    gang, low = job("g", 4, age=9, execution=Execution(gang=4, priority=50)), job("low", 9)
    assert assign([low, gang], NODES, {"a": 2, "b": 1}) == [], "what is free is kept for the gang"
    assert by_job(assign([low, gang], NODES, {"a": 2, "b": 2})) == {"g": 4}
    elsewhere = [*NODES, node("c", runtimes={"litert": frozenset({"LITERT"})}, zone="site", clearance="restricted")]
    bound = replace(gang, execution=Execution(gang=4, priority=50, residency=("site",)))
    assert by_job(assign([low, bound], elsewhere, {"a": 1, "b": 0, "c": 2})) == {"low": 1}, "other nodes are free"


def test_a_job_says_what_it_lacks() -> None:
    assert why_waiting(job("j", 2), NODES, 2) == ""
    assert "no runtime for LITERT" in why_waiting(job("j", 2), [node("bare", runtimes={})], 2)
    assert "data must stay in site" in why_waiting(job("j", 2, execution=Execution(residency=("site",))), NODES, 2)
    assert "none is there" in why_waiting(job("j", 2), [replace(node("a"), alive=False)], 2)
    assert "5 tasks are to begin together" in why_waiting(job("j", 9, execution=Execution(gang=5)), NODES, 2)
    assert why_waiting(job("j", 9, execution=Execution(gang=4)), NODES, 2) == ""
    gone = replace(job("j", 1), variants={})
    assert "no variant v any more" in why_waiting(gone, NODES, 2)
