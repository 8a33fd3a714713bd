"""Whether this scheduler leads. Of several on one database one does; the others wait to take over.

A scheduler whose database is a file of its own leads at once: no other can have it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import sqlalchemy as sa

from sealane.clock import Clock
from sealane.errors import NOT_LEADER, SealaneError, Unavailable
from sealane.records.database import Database
from sealane.rpc.call import Call
from sealane.rpc.middleware import Inward
from sealane_scheduler import leadership_sql
from sealane_scheduler.leadership_sql import Claimant

log = logging.getLogger("sealane.leadership")

#: The lead is had for so long after each renewal, on the database's clock.
LEASE_SECONDS = 8.0
RENEW_SECONDS = 2.0
#: Who could not renew for so long acts no more, whatever the row says: another may have the lead soon.
SURE_SECONDS = LEASE_SECONDS * 2 / 3
#: How often one that waits looks whether the lead is free.
LOOK_SECONDS = 0.5


class Leadership(Inward):
    """The lead, as this process has it or waits for it. A middleware too: refuses every call until it leads.

    Args:
        database: with the row.
        holder: this process; the same after it was started again.
        clock: tells the time.
    """

    def __init__(self, database: Database, holder: str, clock: Clock) -> None:
        self._database = database
        self._who = Claimant(holder)
        self._clock = clock
        self._epoch = 0
        self._sure_until = 0.0
        self._leader = Claimant()
        self._ready = False
        database.guard = self._guard

    @property
    def leads(self) -> bool:
        """Whether it has the lead for sure, now."""
        return self._epoch > 0 and self._clock.monotonic() < self._sure_until

    def check(self) -> None:
        """Refuse to act without the lead.

        Raises:
            Unavailable: another leads, or may (NOT_LEADER).
        """
        if not self.leads:
            raise self._refusal()

    def open(self) -> None:
        """All that is recorded is known: calls are answered from now on."""
        self._ready = True

    def before(self, call: Call) -> None:
        """Refuse a call unless this process leads and is ready; whether it is healthy may always be asked."""
        if not call.method.path.startswith("/grpc.health.") and not (self._ready and self.leads):
            raise self._refusal()

    async def gain(self, addresses: tuple[str, str], waits: Callable[[], None]) -> bool:
        """Wait until this process leads; whether it had to wait for another.

        Args:
            addresses: where others reach its client port and its mesh port.
            waits: called once where another leads.
        """
        self._who, waited = Claimant(self._who.holder, *addresses), False
        while True:
            try:
                if await self._claim():
                    return waited
            except SealaneError as error:
                log.warning("the lead was not asked for, trying again", extra={"reason": error.reason})
            if not waited:
                log.info("another scheduler leads, waiting", extra={"leader": self._leader.mesh_address})
                waits()
            waited = True
            await asyncio.sleep(LOOK_SECONDS)

    async def keep(self) -> None:
        """Renew the lead until it is lost.

        Raises:
            Unavailable: it is lost: this process has to end, since what it knows may be old.
        """
        if not self._database.is_shared:
            while self._epoch:
                await asyncio.sleep(RENEW_SECONDS)
            raise self._refusal()
        while self.leads:
            began = self._clock.monotonic()
            renewing = self._renew(self._epoch, LEASE_SECONDS)
            try:
                async with asyncio.timeout(max(self._sure_until - began, 0.0)):
                    renewed = await asyncio.wrap_future(renewing)
                if not renewed:
                    break
                self._sure_until = began + SURE_SECONDS
            except TimeoutError:
                break
            except SealaneError as error:
                log.warning("the lead was not renewed, trying again", extra={"reason": error.reason})
            await asyncio.sleep(RENEW_SECONDS)
        self._epoch = 0
        log.error("another scheduler leads, or may: this one ends")
        raise self._refusal()

    def give_up(self) -> None:
        """Let another take over at once. Blocks until that is written."""
        epoch, self._epoch, self._ready = self._epoch, 0, False
        if epoch and self._database.is_shared:
            self._renew(epoch, 0.0).exception(LEASE_SECONDS)

    def _renew(self, epoch: int, seconds: float) -> Future[bool]:
        return self._database.write(lambda connection: leadership_sql.renew(connection, epoch, seconds), guarded=False)

    async def _claim(self) -> bool:
        began, force = self._clock.monotonic(), not self._database.is_shared

        def claim(connection: sa.Connection) -> tuple[int, Claimant]:
            epoch = leadership_sql.claim(connection, self._who, LEASE_SECONDS, force=force)
            return epoch, leadership_sql.leader(connection)

        self._epoch, self._leader = await asyncio.wrap_future(self._database.write(claim, guarded=False))
        self._sure_until = math.inf if force else began + SURE_SECONDS
        return self._epoch > 0

    def _guard(self, connection: sa.Connection) -> None:
        """On the database's thread, before each group of writes and in its transaction."""
        epoch = self._epoch
        if not epoch or not leadership_sql.holds(connection, epoch):
            self._epoch = 0
            raise self._refusal()

    def _refusal(self) -> Unavailable:
        known = self._leader if self._leader.holder != self._who.holder else Claimant()
        where = f"; call {known.address}, or {known.mesh_address} on the mesh" if known.address else ""
        return Unavailable(
            f"this scheduler does not lead{where or '; try again'}",
            reason=NOT_LEADER,
            leader=known.address,
            leader_mesh=known.mesh_address,
        )


def holder_in(data_dir: Path) -> str:
    """Name of the process whose data lie in a folder: made at its first start."""
    path = data_dir / "replica"
    if not path.exists():
        path.write_text(secrets.token_hex(8))
    return path.read_text().strip()
