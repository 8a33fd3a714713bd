"""The chain of an audit log: the exact form of its hashes, and the check that names the first bad row.

Pure: no database, no service, no clock. Whoever has the rows and the root certificates can run it.

The hash of a row is the SHA-256 of these parts, in this order, each after its length as four bytes, big-endian
(:func:`sealane.security.length_prefixed.lp`)::

    "sealane/audit-row/v1"
    service                        auth, registry or scheduler
    sequence                       decimal, from 1
    hash of the row before         32 bytes; zeros for the first
    id                             decimal
    time                           nanoseconds since 1970, decimal
    project, actor, action, resource, request id, details        UTF-8

Since the form says where the row stands, which service it is of and where each part ends, no two different rows
share an input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from sealane.security.audit_checkpoint import Checkpoint, CheckpointRefused, Notary
from sealane.security.length_prefixed import lp

GENESIS = bytes(32)
_DOMAIN = "sealane/audit-row/v1"


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One row as it was written; `sequence` and `hash` are empty until it is sealed."""

    id: int
    time_ns: int
    project: str
    actor: str
    action: str
    resource: str
    request_id: str
    details: str
    sequence: int | None = None
    hash: bytes = b""

    def sealed_hash(self, service: str, sequence: int, previous: bytes) -> bytes:
        """The hash that seals this row at a place in a service's chain."""
        place = (_DOMAIN, service, str(sequence), previous, str(self.id), str(self.time_ns))
        content = (self.project, self.actor, self.action, self.resource, self.request_id, self.details)
        return hashlib.sha256(lp(*place, *content)).digest()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that holds what no service writes: another type, or broken text."""

    id: int
    sequence: int | None
    why: str


class Kind(StrEnum):
    """What is wrong with a log."""

    ALTERED = "altered"
    MISSING = "missing"
    REORDERED = "reordered"
    TRUNCATED = "truncated"
    REWRITTEN = "rewritten"
    CHECKPOINT = "checkpoint"
    UNSEALED = "unsealed"


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing wrong.

    Args:
        kind: what.
        sequence: of the first bad row, also where it is missing; 0 for a row without one.
        row_id: of the row, where there is one.
        why: in words.
    """

    kind: Kind
    sequence: int
    row_id: int
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found; `fault` is None where all is well."""

    service: str
    rows: int
    last_sequence: int
    unsealed: int
    checkpoints: int
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the table itself says about its end.

    Args:
        last_id: highest id that was ever given out, where the database keeps it.
        dense: ids have no gaps, as in SQLite, where an insert that is undone gives its id back.
        unsealed_before_ns: an unsealed row older than this is a fault; None where the log is at rest.
    """

    last_id: int | None = None
    dense: bool = False
    unsealed_before_ns: int | None = None


@dataclass(slots=True)
class LogCheck:
    """Checks rows one by one, in the order of their sequence, unsealed ones last.

    Args:
        notary: says whether a checkpoint is this service's.
        checkpoints: those to hold the log against, by sequence.
        bounds: what the table says about its end.
        last_sequence, last_hash, last_id: where the chain stands; a later start trusts everything before.
    """

    notary: Notary
    checkpoints: Iterator[Checkpoint] = field(default_factory=lambda: iter(()))
    bounds: Bounds = field(default_factory=Bounds)
    last_sequence: int = 0
    last_hash: bytes = GENESIS
    last_id: int = 0
    _rows: int = 0
    _unsealed: int = 0
    _held: int = 0
    _held_sequence: int = 0
    _next: Checkpoint | None = None

    def __post_init__(self) -> None:
        self._next = next(self.checkpoints, None)

    def row(self, row: AuditRow | Unreadable) -> Fault | None:
        """The next row; a fault ends the check."""
        if row.sequence is None:
            return self._unsealed_row(row)
        expected = self.last_sequence + 1
        if row.sequence > expected:
            return Fault(Kind.MISSING, expected, 0, f"row {expected} is missing; row {row.sequence} follows")
        if row.sequence < expected:
            return Fault(
                Kind.REORDERED, row.sequence, row.id, f"row {row.sequence} stands where row {expected} belongs"
            )
        if isinstance(row, Unreadable):
            return Fault(Kind.ALTERED, expected, row.id, row.why)
        if row.sealed_hash(self.notary.service, expected, self.last_hash) != row.hash:
            return Fault(Kind.ALTERED, expected, row.id, f"row {expected} is not what was sealed after the row before")
        self.last_sequence, self.last_hash, self._rows = expected, row.hash, self._rows + 1
        return self._against_checkpoints(row.id) or self._gap(row.id, expected)

    def end(self) -> Fault | None:
        """After the last row."""
        if self._next is not None:
            fault = self._signature(self._next)
            expected = self.last_sequence + 1
            why = f"the log ends with row {self.last_sequence}, a checkpoint covers row {self._next.sequence}"
            return fault or Fault(Kind.TRUNCATED, expected, 0, why)
        last = self.bounds.last_id
        if last is not None and self.bounds.dense and last > self.last_id:
            why = f"the log ends with id {self.last_id}, the table has given out {last}"
            return Fault(Kind.TRUNCATED, self.last_sequence + 1, 0, why)
        return None

    def report(self, fault: Fault | None) -> Report:
        """What was found so far."""
        return Report(self.notary.service, self._rows, self.last_sequence, self._unsealed, self._held, fault)

    def _unsealed_row(self, row: AuditRow | Unreadable) -> Fault | None:
        if isinstance(row, Unreadable):
            return Fault(Kind.ALTERED, 0, row.id, row.why)
        self._unsealed += 1
        before = self.bounds.unsealed_before_ns
        if before is not None and row.time_ns < before:
            return Fault(Kind.UNSEALED, 0, row.id, "the row should have been sealed long ago")
        return self._gap(row.id, self.last_sequence + 1)

    def _gap(self, row_id: int, place: int) -> Fault | None:
        before, self.last_id = self.last_id, row_id
        if self.bounds.dense and row_id != before + 1:
            why = f"id {row_id} follows id {before}: what was between them is gone"
            return Fault(Kind.MISSING, place, row_id, why)
        return None

    def _against_checkpoints(self, row_id: int) -> Fault | None:
        while self._next is not None and self._next.sequence <= self.last_sequence:
            checkpoint = self._next
            fault = self._signature(checkpoint)
            if fault is not None:
                return fault
            if checkpoint.sequence == self.last_sequence and checkpoint.hash != self.last_hash:
                first = min(self._held_sequence + 1, self.last_sequence)
                why = (
                    f"a checkpoint has another hash for row {self.last_sequence}: rows {first} to it were written anew"
                )
                return Fault(Kind.REWRITTEN, first, row_id, why)
            self._held, self._held_sequence = self._held + 1, checkpoint.sequence
            self._next = next(self.checkpoints, None)
        return None

    def _signature(self, checkpoint: Checkpoint) -> Fault | None:
        try:
            self.notary.check(checkpoint)
        except CheckpointRefused as error:
            return Fault(Kind.CHECKPOINT, checkpoint.sequence, 0, str(error))
        return None


def verify(
    rows: Iterable[AuditRow | Unreadable],
    checkpoints: Iterable[Checkpoint],
    notary: Notary,
    bounds: Bounds | None = None,
) -> Report:
    """Check a whole log; reads one row at a time and stops at the first fault.

    Args:
        rows: by sequence, then those without one.
        checkpoints: by sequence; the log's own, and those that were kept elsewhere.
        notary: knows the service and the roots.
        bounds: what the table says about its end.
    """
    check = LogCheck(notary, iter(checkpoints), bounds or Bounds())
    for row in rows:
        fault = check.row(row)
        if fault is not None:
            return check.report(fault)
    return check.report(check.end())
