"""Seals the audit table of a service: gives committed rows their place in the hash chain, and signs checkpoints.

A mutation writes its audit row in its own transaction and does not wait for the chain (that would serialise
PostgreSQL's commits). The sealer of the process follows within a second. It works on the database's one thread, keeps
no state that the table does not have, and can be killed at any point: a row is either sealed or waits for the next.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from sealane.auth.v1 import audit_service_pb2
from sealane.clock import Clock
from sealane.failpoint import failpoint
from sealane.records import audit_rows
from sealane.records.database import Database
from sealane.records.tables import audit, audit_checkpoints
from sealane.security import audit_checkpoint
from sealane.security.audit_checkpoint import Checkpoint
from sealane.security.audit_log import GENESIS, AuditRow
from sealane.security.audit_messages import checkpoint_message, to_line
from sealane.security.tls import PeerIdentity

log = logging.getLogger("sealane.audit")

#: How often the sealer looks for rows.
SEAL_SECONDS = 0.5
#: A checkpoint is due after so many rows, or so long after the one before where there are new rows.
CHECKPOINT_ROWS = 1000
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain stands."""

    sequence: int = 0
    hash: bytes = GENESIS


class Sealer:
    """Seals one service's audit table. One per process.

    Args:
        database: with the table.
        service: ``auth``, ``registry`` or ``scheduler``.
        identity: certificate that checkpoints are signed with.
        clock: for the time of checkpoints.
        checkpoint_file: where checkpoints are appended as JSON lines too; empty for nowhere.
    """

    def __init__(
        self, database: Database, service: str, identity: PeerIdentity, clock: Clock, checkpoint_file: str = ""
    ) -> None:
        self.database = database
        self.service = service
        self.identity = identity
        self.clock = clock
        self._file = Path(checkpoint_file) if checkpoint_file else None
        self._head: Head | None = None
        self._marked = 0
        self._mark_due = 0.0
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Seal for ever; first what a process before this one left, which may have been killed again and again."""
        while True:
            try:
                await self.seal()
                await self._mark_if_due()
            except Exception:  # supervisor: a full disk or a certificate under renewal must not end the sealing
                log.exception("sealing failed; trying again")
            await asyncio.sleep(SEAL_SECONDS)

    async def seal(self) -> Head:
        """Seal what was committed; returns where the chain stands."""
        async with self._turn:
            return await self._seal()

    async def mark(self) -> None:
        """Seal what was committed and sign a checkpoint, unless the last one says it already."""
        async with self._turn:
            head = await self._seal()
            if head.sequence > self._marked:
                await asyncio.to_thread(self._mark, head)

    async def close(self) -> None:
        """The last rows and a checkpoint that covers them, before the database closes."""
        try:
            await self.mark()
        except Exception:  # supervisor: the rows stay, the next start seals them
            log.exception("the last rows were not sealed; the next start seals them")

    async def _mark_if_due(self) -> None:
        head = self._head or Head()
        waits = head.sequence > self._marked and self.clock.monotonic() >= self._mark_due
        if waits or head.sequence - self._marked >= CHECKPOINT_ROWS:
            await self.mark()

    async def _seal(self) -> Head:
        head, self._head = self._head or await self._recall(), None  # after a failure the table is asked again
        # A read first: a service without work commits nothing.
        while await asyncio.wrap_future(self.database.read(_waiting)):
            before, head = head, await self._seal_batch(head)
            if head == before:
                break  # what waits was edited and cannot be sealed; verifying names it
        self._head = head
        return head

    async def _recall(self) -> Head:
        head, marked = await asyncio.wrap_future(self.database.read(_recall))
        if marked > head.sequence:
            log.error("the audit log is shorter than its checkpoints say; verify it")
        self._marked = min(marked, head.sequence)
        return head

    async def _seal_batch(self, head: Head) -> Head:
        return await asyncio.wrap_future(self.database.write(lambda connection: seal(connection, self.service, head)))

    def _mark(self, head: Head) -> None:
        """Sign and keep a checkpoint; the file first: it may only ever know more than the table."""
        now = round(self.clock.now() * 1e6)
        signed = audit_checkpoint.sign(Checkpoint(self.service, head.sequence, head.hash, now), self.identity)
        if self._file is not None:
            _append(self._file, signed)
        failpoint("audit.before_checkpoint")
        values = {
            "sequence": signed.sequence,
            "hash": signed.hash,
            "time_us": signed.time_us,
            "signature": signed.signature,
            "chain": signed.chain,
        }
        self.database.write(lambda connection: connection.execute(audit_checkpoints.insert().values(values))).result()
        self._marked, self._mark_due = head.sequence, self.clock.monotonic() + CHECKPOINT_SECONDS


def seal(connection: sa.Connection, service: str, head: Head) -> Head:
    """Chain one batch of committed rows to `head`; returns the new head.

    Rows are taken by id. In PostgreSQL a row may commit after one with a higher id: it then stands later in the chain.
    """
    waiting = connection.execute(
        sa.select(audit).where(audit.c.sequence.is_(None)).order_by(audit.c.id).limit(audit_rows.BATCH)
    ).mappings()
    seals = []
    for found in waiting.all():
        row = audit_rows.read(found)
        if not isinstance(row, AuditRow):
            continue
        sequence = head.sequence + 1
        head = Head(sequence, row.sealed_hash(service, sequence, head.hash))
        seals.append({"row_id": row.id, "place": sequence, "seal": head.hash.hex()})
    if seals:
        change = audit.update().where(audit.c.id == sa.bindparam("row_id"))
        connection.execute(change.values(sequence=sa.bindparam("place"), hash=sa.bindparam("seal")), seals)
        failpoint("audit.sealed")
    return head


def _waiting(connection: sa.Connection) -> bool:
    return connection.execute(sa.select(audit.c.id).where(audit.c.sequence.is_(None)).limit(1)).first() is not None


def _recall(connection: sa.Connection) -> tuple[Head, int]:
    """Where the table says that the chain stands, and the last row that a checkpoint covers."""
    place = audit.c.sequence
    last = connection.execute(
        sa.select(place, audit.c.hash).where(place.is_not(None)).order_by(place.desc()).limit(1)
    ).one_or_none()
    marked = connection.execute(sa.select(sa.func.max(audit_checkpoints.c.sequence))).scalar()
    return Head() if last is None else Head(last[0], bytes.fromhex(last[1])), marked or 0


def _append(path: Path, checkpoint: Checkpoint) -> None:
    line = to_line(audit_service_pb2.ExportAuditLogResponse(audit_checkpoint=checkpoint_message(checkpoint)))
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
