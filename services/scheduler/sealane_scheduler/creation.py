"""Deployments are created and placed in one transaction: what was decided about them is recorded with them.

Calls that come while others are being recorded wait for each other: they are placed, and recorded, together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import Message

from sealane.errors import FailedPrecondition, SealaneError
from sealane.failpoint import failpoint
from sealane.records.once import UNPROTECTED, Answer, Asked
from sealane.records.tables import Actor, Change
from sealane.records.transactions import Transactions
from sealane_scheduler.batch import Placed
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.placer import Placer
from sealane_scheduler.placing import Binding, keep
from sealane_scheduler.recollection import deployed
from sealane_scheduler.store import DeploymentRow, Store, name_taken

#: Deployments that are placed together, unless one call has more.
AT_ONCE = 64
#: While one group is being recorded the next one is decided about, once it is as large as this.
_WORTHWHILE = AT_ONCE // 2
#: After a group of several calls the next ones are likely to come together, too: so long the first waits for them.
_GATHER_SECONDS = 0.002
_ACTION = "CreateDeployment"


@dataclass(frozen=True, slots=True)
class Creation:
    """Deployments that one call creates.

    Args:
        rows: the deployments.
        actor: who creates them.
        answer: makes the answer of what was decided about them, before it is committed.
        asked: the call's id, under which a repeat gets the same answer.
        gang: whether to create nothing where not all of their copies can be placed.
    """

    rows: Sequence[DeploymentRow]
    actor: Actor
    answer: Callable[[Sequence[Binding]], Message]
    asked: Asked = UNPROTECTED
    gang: bool = False


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call that waits for its answer."""

    wanted: Creation
    items: list[Deployed]
    answer: asyncio.Future[bytes]
    bindings: list[Binding] = field(default_factory=list)

    def response(self) -> bytes:
        """The answer, once it is recorded."""
        return self.wanted.answer(self.bindings).SerializeToString()

    def refuse(self, failure: Exception) -> None:
        """There is no answer."""
        if not self.answer.done():
            self.answer.set_exception(failure)


class Creations:
    """Creates deployments. Lives on the event loop.

    Args:
        records: where they are kept.
        placer: decides.
        created: takes up what was recorded.
    """

    def __init__(
        self, records: Transactions[Store], placer: Placer, created: Callable[[Sequence[Binding]], None]
    ) -> None:
        self._records = records
        self._placer = placer
        self._created = created
        self._waiting: deque[_Waiting] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._several = False
        self._gathering: asyncio.TimerHandle | None = None

    async def create(self, wanted: Creation) -> bytes:
        """Create deployments and place them.

        Returns:
            The answer, serialized, which is committed.

        Raises:
            FailedPrecondition: a gang that does not fit; the reason is the binding constraint.
            AlreadyExists: an id is taken.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(wanted, [deployed(row) for row in wanted.rows], loop.create_future())
        self._waiting.append(waiting)
        if not self._several:
            loop.call_soon(self._begin)
        elif self._gathering is None:
            self._gathering = loop.call_later(_GATHER_SECONDS, self._gathered)
        # A caller that goes away must not leave behind what is recorded and known to nobody.
        return await waiting.answer

    def _gathered(self) -> None:
        self._gathering = None
        self._begin()

    def _begin(self) -> None:
        while self._waiting and (not self._under_way or (len(self._under_way) == 1 and self._is_worthwhile())):
            group = self._next()
            self._several = len(group) > 1
            task = asyncio.ensure_future(self._run(group))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _is_worthwhile(self) -> bool:
        return sum(len(call.items) for call in self._waiting) >= _WORTHWHILE

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._begin()

    def _next(self) -> list[_Waiting]:
        """Calls that go together, in their order; a gang goes alone."""
        group = [self._waiting.popleft()]
        count = len(group[0].items)
        while self._waiting and not group[0].wanted.gang:
            following = self._waiting[0]
            count += len(following.items)
            if following.wanted.gang or count > AT_ONCE:
                break
            group.append(self._waiting.popleft())
        return group

    async def _run(self, group: Sequence[_Waiting]) -> None:
        """Place what some calls want, record it, and answer."""
        calls = [call for call in group if not call.answer.done()]  # who is gone creates nothing
        try:
            await self._place(calls)
            answers, recorded = await self._commit(calls)
        except Exception as failure:  # supervisor: whatever it was, those who wait hear of it
            for call in calls:
                self._placer.release(call.bindings)
                call.refuse(failure)
            return
        for call in calls:
            if call not in recorded:
                self._placer.release(call.bindings)
        if recorded:
            failpoint("scheduler.bind.committed")
            self._created([binding for call in recorded for binding in call.bindings])
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, SealaneError):
                call.refuse(answer)
            elif not call.answer.done():
                call.answer.set_result(answer)

    async def _place(self, calls: Sequence[_Waiting]) -> None:
        items = [item for call in calls for item in call.items]
        await self._placer.ready_for(len(items))
        gang = any(call.wanted.gang for call in calls)
        found = self._placer.reserve(items, gang=gang)
        if gang and (lacking := next((place for place in found if place.refusal is not None), None)) is not None:
            raise _does_not_fit(items[found.index(lacking)].row, lacking)
        now, places = self._placer.now, iter(found)
        for call in calls:
            for item in call.items:
                placed = next(places)
                call.bindings.append(Binding(item, placed, now, self._placer.serialize, not placed.places))

    async def _commit(self, calls: Sequence[_Waiting]) -> tuple[list[Answer], list[_Waiting]]:
        """The answer of each call, and those calls that are not repeats and were not refused."""
        now, recorded = self._placer.now, list[_Waiting]()

        def run(store: Store, places: Sequence[int]) -> list[Answer]:
            new = [calls[place] for place in places]
            refused = _refused(store, new)
            recorded.extend(call for call, failure in zip(new, refused, strict=True) if failure is None)
            _record(store, recorded, now)
            return [call.response() if failure is None else failure for call, failure in zip(new, refused, strict=True)]

        return await self._records.once_each([call.wanted.asked for call in calls], run), recorded


def _refused(store: Store, calls: Sequence[_Waiting]) -> list[SealaneError | None]:
    """Why calls are refused that want a name that is taken; by one that came before them, too."""
    wanted = [[(row.project, row.deployment) for row in call.wanted.rows] for call in calls]
    taken, refused = store.taken({name for names in wanted for name in names}), list[SealaneError | None]()
    for names in wanted:
        lacking = next((deployment for project, deployment in names if (project, deployment) in taken), None)
        refused.append(None if lacking is None else name_taken(lacking))
        if lacking is None:
            taken.update(names)
    return refused


def _record(store: Store, calls: Sequence[_Waiting], now: float) -> None:
    bindings = [binding for call in calls for binding in call.bindings]
    store.add_deployments([binding.item.row for binding in bindings])
    keep(store, bindings, first=True)
    changes = [
        Change(call.wanted.actor, _ACTION, row.name, _details(row)) for call in calls for row in call.wanted.rows
    ]
    store.record_all(changes, now)


def _details(row: DeploymentRow) -> dict[str, str]:
    """What the audit trail says of a new deployment."""
    return {"version": row.model_version} | ({"origin": row.origin} if row.origin else {})


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
