"""Cordons, drains and opens nodes as operators ask for it. The controller moves copies; tasks are taken back here."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from sealane.clock import Clock
from sealane.errors import NotFound, SealaneError
from sealane.records.tables import Actor
from sealane_scheduler.cluster import Copy, Deployed
from sealane_scheduler.controller import Controller
from sealane_scheduler.fleet import NodeState
from sealane_scheduler.holds import CORDONED, DRAINING, OPEN
from sealane_scheduler.job_loop import JobLoop
from sealane_scheduler.store import HoldRow, Store
from sealane_scheduler.task_loop import TaskLoop

log = logging.getLogger("sealane.drains")

TICK_SECONDS = 0.5
DRAINED = "DRAINED"
_ACTIONS = {OPEN: "UncordonNode", CORDONED: "CordonNode", DRAINING: "DrainNode"}


@dataclass(frozen=True, slots=True)
class Standing:
    """A node with what it holds.

    Args:
        state: how its stream stands.
        admission: what it may take; ``DRAINED`` where it was to get empty and is.
        deadline: when what is left goes anyway, seconds since 1970; 0 for never.
        copies: of deployments.
        tasks: how many tasks of jobs it has.
        message: why what it has is not placed elsewhere yet, while it is lost.
    """

    state: NodeState
    admission: str
    deadline: float
    copies: tuple[tuple[Deployed, Copy], ...]
    tasks: int
    message: str


class Drains:
    """What operators ask of nodes, and the loop that takes tasks back in time."""

    def __init__(self, controller: Controller, loops: tuple[JobLoop, TaskLoop], clock: Clock) -> None:
        self._controller = controller
        self._loops = loops
        self._clock = clock

    async def hold(self, actor: Actor, node: str, admission: str, deadline: float = 0.0) -> None:
        """Say what a node may take from now on; saying it again changes nothing.

        Args:
            actor: who says so.
            node: its id.
            admission: ``OPEN``, ``CORDONED`` or ``DRAINING``.
            deadline: when a drain ends anyway, seconds since 1970; 0 for never.

        Raises:
            NotFound: no such node was seen.
        """
        self._state(node)
        before, now = self._controller.holds.get(node), self._clock.now()
        if (before.admission, before.deadline) == (admission, deadline):
            return
        row = HoldRow(node, admission, deadline, now)

        def write(store: Store) -> None:
            store.drop_hold(node)
            if admission != OPEN:
                store.put_hold(row)
            store.record(actor, _ACTIONS[admission], f"nodes/{node}", now, **_details(row))

        await self._controller.hold(row, write)
        log.info("what a node may take has changed", extra={"node": node, "admission": admission})

    def standing(self, node: str) -> Standing:
        """A node as it stands.

        Raises:
            NotFound: no such node was seen.
        """
        state, held = self._state(node), self._controller.holds.get(node)
        copies, tasks = self._controller.copies_on(node), sum(loop.held_by(node) for loop in self._loops)
        empty = held.admission == DRAINING and not copies and not tasks
        message = self._controller.recovery.why(node, [item for item, _ in copies])
        return Standing(state, DRAINED if empty else held.admission, held.deadline, tuple(copies), tasks, message)

    async def run(self) -> None:
        """Take tasks back from nodes whose time is over, until cancelled."""
        while True:
            try:
                await self.step()
            except SealaneError as error:
                log.warning("tasks were not taken back, trying again", extra={"reason": error.reason})
            await asyncio.sleep(TICK_SECONDS)

    async def step(self) -> None:
        """One look at the clock."""
        now, holds = self._clock.now(), self._controller.holds
        over = {row.node for row in holds if holds.over(row.node, now)}
        for loop in self._loops if over else ():
            await loop.take_back(over)

    def _state(self, node: str) -> NodeState:
        state = self._controller.fleet.get(node)
        if state is None:
            raise NotFound(f"no node {node} was seen; list them with 'sealane nodes list'")
        return state


def _details(row: HoldRow) -> dict[str, str]:
    return {"deadline": f"{row.deadline:.3f}"} if row.deadline else {}
