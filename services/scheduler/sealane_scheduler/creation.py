"""Deployments are created and placed in one transaction: what was decided about them is recorded with them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sealane.errors import FailedPrecondition
from sealane.failpoint import failpoint
from sealane_scheduler import present
from sealane_scheduler.batch import Placed
from sealane_scheduler.placer import Placer
from sealane_scheduler.placing import Binding, keep
from sealane_scheduler.recollection import deployed
from sealane_scheduler.store import DeploymentRow, Store

T = TypeVar("T")
R = TypeVar("R")
Note = Callable[[Store, Sequence[Binding]], T]
Commit = Callable[[Callable[[Store], T]], Awaitable[R]]


async def create(
    placer: Placer,
    rows: Sequence[DeploymentRow],
    ways: tuple[Note[T], Commit[T, R]],
    created: Callable[[Sequence[Binding]], None],
    *,
    gang: bool = False,
) -> R:
    """Create deployments and place them.

    Args:
        placer: decides.
        rows: the deployments, which are recorded here.
        ways: a function that records what else belongs to it and makes the answer, and one that runs a function of the
            store in a transaction, or not at all where it is the repeat of a call.
        created: takes up what was recorded.
        gang: whether to create nothing where not all of their copies can be placed.

    Returns:
        What was committed.

    Raises:
        FailedPrecondition: a gang that does not fit; the reason is the binding constraint.
        AlreadyExists: an id is taken.
    """
    await placer.ready_for(len(rows))
    items = [deployed(row) for row in rows]
    found = placer.reserve(items, gang=gang)
    if gang and (lacking := next((place for place in found if place.refusal is not None), None)) is not None:
        raise _does_not_fit(rows[found.index(lacking)], lacking)
    now = placer.now
    serialize = present.Serializer(now)
    bindings = [
        Binding(item, placed, now, not placed.places, serialize) for item, placed in zip(items, found, strict=True)
    ]
    # A caller that goes away must not leave behind what is recorded and known to nobody.
    return await asyncio.shield(asyncio.ensure_future(_commit(placer, bindings, ways, created)))


async def _commit(
    placer: Placer,
    bindings: Sequence[Binding],
    ways: tuple[Note[T], Commit[T, R]],
    created: Callable[[Sequence[Binding]], None],
) -> R:
    (note, commit), ran = ways, list[bool]()

    def run(store: Store) -> T:
        store.add_deployments([binding.item.row for binding in bindings])
        keep(store, bindings, first=True)
        ran.append(True)
        return note(store, bindings)

    done = False
    try:
        answer = await commit(run)
        done = bool(ran)
    finally:
        if not done:
            placer.release(bindings)
    if done:
        failpoint("scheduler.bind.committed")
        created(bindings)
    return answer


def _does_not_fit(row: DeploymentRow, placed: Placed) -> FailedPrecondition:
    assert placed.refusal is not None
    decision = placed.refusal[0]
    constraint = decision.binding_constraint
    return FailedPrecondition(
        f"nothing was created: {row.deployment} does not fit beside the others: {decision.unavailable_reason}; "
        "ask for less, or make room",
        reason=constraint.upper(),
        constraint=constraint,
        deployment=row.deployment,
    )
