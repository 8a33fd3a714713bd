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

_CLOSED = "it takes no new work"


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
    kept: list[tuple[int, set[str]]] = []  # nodes that a gang of some priority waits for
    while open_jobs:
        job = min(open_jobs, key=lambda item: _rank(item, used))
        mine = _without(free, kept, job.execution.priority)
        wanted = _batch_of(job, left[job.row.name], begun[job.row.name])
        chosen = _choose(job, wanted, able[job.row.name], mine)
        if not chosen and len(wanted) == 1:
            chosen = _first_fit(job, left[job.row.name][1:], able[job.row.name], mine)
        if not chosen:
            if len(wanted) > 1:
                kept.append((job.execution.priority, _nodes_of(able[job.row.name])))
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
    # A gang is as large as what there is left to do, also of what waits to be tried again.
    gang = 1 if under_way else max(min(item.execution.gang, item.row.tasks_total - item.row.tasks_succeeded), 1)
    return list(left[:gang]) if gang <= min(room, len(left)) else []


def _nodes_of(able: Mapping[str, Sequence[NodeView]]) -> set[str]:
    return {node.node for nodes in able.values() for node in nodes}


def _without(free: Mapping[str, int], kept: Sequence[tuple[int, set[str]]], priority: int) -> dict[str, int]:
    """Free places but for those that a gang of a higher priority waits for."""
    held = {name for above, names in kept if above > priority for name in names}
    return {name: count for name, count in free.items() if name not in held}


def why_waiting(item: Queued, nodes: Sequence[NodeView], places: int) -> str:
    """Why a job cannot go on whatever ends elsewhere; empty where it only has to wait its turn.

    Args:
        item: the job.
        nodes: workers.
        places: places of one worker.
    """
    able = _able(item, nodes)
    for task in item.waiting:
        if not able.get(task.variant):
            return f"task {task.task} waits for a worker: {_lack(item, nodes, task.variant)}"
    if not item.running and item.execution.gang > 1:
        room = len(_nodes_of(able)) * places
        gang = min(item.execution.gang, item.row.tasks_total - item.row.tasks_succeeded)
        if gang > room:
            return f"{gang} tasks are to begin together and its workers have {room} places; add workers"
    return ""


def _lack(item: Queued, nodes: Sequence[NodeView], variant: str) -> str:
    """What the nearest worker lacks for a variant."""
    view = item.variants.get(variant)
    if view is None:
        return f"the version has no variant {variant} any more"
    demand = Demand(data_class=item.execution.data_class, residency=item.execution.residency)
    alive = [node for node in nodes if node.alive]
    if view.blocked or not alive:
        return view.blocked or "none is there"
    lacks = [(forbidden(demand, node, view) or unloadable(node, view) or _CLOSED, node.node) for node in alive]
    why, node = min(lacks, key=lambda lack: (len(lack[0]), lack[1]))
    return f"{variant}: {why} ({node})"


def _able(item: Queued, nodes: Sequence[NodeView]) -> Mapping[str, list[NodeView]]:
    """Variant -> nodes on which its tasks may run."""
    demand = Demand(data_class=item.execution.data_class, residency=item.execution.residency)
    return {
        name: [
            node
            for node in nodes
            if node.alive and not node.draining and not view.blocked
            if not forbidden(demand, node, view) and not unloadable(node, view)
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
