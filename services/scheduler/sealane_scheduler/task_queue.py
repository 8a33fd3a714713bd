"""Which task goes to which node next. Pure.

Order: priority, then the project with the least under way, then age. Late binding: a task is given to a node that has
a place free, and is not planned before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sealane_scheduler.filters import Demand, NodeView, VariantView, forbidden, unloadable
from sealane_scheduler.store import JobRow
from sealane_scheduler.task_store import TaskRow
from sealane_scheduler.tasks import Execution


@dataclass(frozen=True, slots=True)
class Queued:
    """A job that has tasks to give out.

    Args:
        row: the job.
        execution: how its tasks are run.
        variants: the variants that its tasks are about, by id.
        waiting: tasks that may begin.
        slow: tasks under way that may be begun a second time.
        running: tasks of the job under way, by node.
        failed_on: task -> nodes on which it failed, or is under way.
    """

    row: JobRow
    execution: Execution
    variants: Mapping[str, VariantView]
    waiting: Sequence[TaskRow] = ()
    slow: Sequence[TaskRow] = ()
    running: Mapping[str, int] = field(default_factory=dict)
    failed_on: Mapping[int, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Given:
    """A task for a node."""

    row: JobRow
    task: TaskRow
    node: str


def assign(queue: Sequence[Queued], nodes: Sequence[NodeView], places: Mapping[str, int]) -> list[Given]:
    """Give tasks to free places, until there are none that fit.

    Args:
        queue: jobs.
        nodes: workers.
        places: node -> places that are free on it.
    """
    free, begun = dict(places), Counter[str]()
    used = Counter[str]()
    for item in queue:
        used[item.row.project] += sum(item.running.values())
    left = {item.row.name: [*item.waiting, *item.slow] for item in queue}
    able = {item.row.name: _able(item, nodes) for item in queue}
    given: list[Given] = []
    open_jobs = list(queue)
    while open_jobs:
        job = min(open_jobs, key=lambda item: _rank(item, used))
        wanted = _batch_of(job, left[job.row.name], begun[job.row.name])
        chosen = _choose(job, wanted, able[job.row.name], free)
        if not chosen and len(wanted) == 1:
            chosen = _first_fit(job, left[job.row.name][1:], able[job.row.name], free)
        if not chosen:
            open_jobs.remove(job)
            continue
        for task, node in chosen:
            free[node] -= 1
            left[job.row.name].remove(task)
            given.append(Given(job.row, task, node))
        used[job.row.project] += len(chosen)
        begun[job.row.name] += len(chosen)
    return given


def _rank(item: Queued, used: Mapping[str, int]) -> tuple[int, int, float, str]:
    return -item.execution.priority, used[item.row.project], item.row.create_time, item.row.name


def _batch_of(item: Queued, left: Sequence[TaskRow], begun: int) -> list[TaskRow]:
    """What the job begins next, all of it or nothing."""
    under_way = sum(item.running.values()) + begun
    room = item.execution.max_parallel - under_way if item.execution.max_parallel else len(left)
    gang = 1 if under_way else max(item.execution.gang, 1)
    count = min(gang, len(left))
    return list(left[:count]) if count <= room else []


def _able(item: Queued, nodes: Sequence[NodeView]) -> Mapping[str, list[NodeView]]:
    """Variant -> nodes on which its tasks may run."""
    demand = Demand(data_class=item.execution.data_class, residency=item.execution.residency)
    return {
        name: [
            node
            for node in nodes
            if node.alive and not forbidden(demand, node, view) and not unloadable(node, view) and not view.blocked
        ]
        for name, view in item.variants.items()
    }


def _first_fit(
    item: Queued, tasks: Sequence[TaskRow], able: Mapping[str, Sequence[NodeView]], places: Mapping[str, int]
) -> list[tuple[TaskRow, str]]:
    """The first of these tasks that finds a node: one that fits nowhere now holds up none behind it."""
    open_ = {name for name, nodes in able.items() if any(places.get(node.node, 0) > 0 for node in nodes)}
    found = (_choose(item, [task], able, places) for task in tasks if task.variant in open_)
    return next((chosen for chosen in found if chosen), [])


def _choose(
    item: Queued, tasks: Sequence[TaskRow], able: Mapping[str, Sequence[NodeView]], places: Mapping[str, int]
) -> list[tuple[TaskRow, str]]:
    """A node for each of these tasks; none where one of them finds none."""
    free, chosen = dict(places), []
    for task in tasks:
        known = item.failed_on.get(task.task, frozenset())
        fit = [node for node in able.get(task.variant, ()) if free.get(node.node, 0) > 0]
        if task in item.slow or any(node.node not in known for node in able.get(task.variant, ())):
            fit = [node for node in fit if node.node not in known]  # rather wait for one that did not fail at it
        if not fit:
            return []
        best = min(fit, key=lambda node: _preference(item, node, free))
        free[best.node] -= 1
        chosen.append((task, best.node))
    return chosen


def _preference(item: Queued, node: NodeView, free: Mapping[str, int]) -> tuple[int, bool, bool, str]:
    """Most room first, then where the model is, then the cloud."""
    return -free[node.node], not item.running.get(node.node, 0), node.tier != "cloud", node.node
