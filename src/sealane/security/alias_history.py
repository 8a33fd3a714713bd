"""The chain of an alias's moves: each carries the hash of the one before it, so that none can be changed or left out.

Service and client compute it alike. The hash of a move is the SHA-256 over these, each as a 4-byte big-endian length
and its bytes: ``sealane/alias-move/v1``, name of the alias, sequence, version, previous version, time in microseconds
since 1970, mover, the SHA-256 of the evidence, the previous hash. Numbers are decimal text; a version is its number, 0
for none. The evidence is text, a line for each check: kind, 1 or 0 for passed, requirement, finding, remedy, each piece
of evidence, separated by U+001F and ended by a line feed; white space inside is single blanks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from sealane.errors import DataLoss

GENESIS = bytes(32)
_DOMAIN = b"sealane/alias-move/v1"


@dataclass(frozen=True, slots=True)
class Move:
    """One move.

    Args:
        alias: full name of the alias.
        sequence: counted from 1.
        number: version that it points at from then on; 0 where it was taken away.
        previous: version before; 0 for none.
        time_us: microseconds since 1970.
        mover: who moved it.
        evidence: what was known, as :func:`evidence_text` writes it.
        previous_hash: hash of the move before.
    """

    alias: str
    sequence: int
    number: int
    previous: int
    time_us: int
    mover: str
    evidence: str
    previous_hash: bytes

    @property
    def hash(self) -> bytes:
        """SHA-256, 32 bytes."""
        parts = (
            _DOMAIN,
            self.alias.encode(),
            str(self.sequence).encode(),
            str(self.number).encode(),
            str(self.previous).encode(),
            str(self.time_us).encode(),
            self.mover.encode(),
            hashlib.sha256(self.evidence.encode()).digest(),
            self.previous_hash,
        )
        return hashlib.sha256(b"".join(struct.pack(">I", len(part)) + part for part in parts)).digest()


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of an alias and how a version meets it.

    Args:
        kind: ``STATE``, ``LOAD_CHECK``, ``EVALUATION``, ``APPROVAL``, ``SIGNATURE``, ``LOADABLE`` or ``LINEAGE``.
        passed: whether it is met.
        requirement: what is demanded.
        finding: what was found.
        remedy: what to do; empty where it is met.
        evidence: what shows it.
    """

    kind: str
    passed: bool
    requirement: str
    finding: str
    remedy: str = ""
    evidence: tuple[str, ...] = ()


def evidence_text(checks: Iterable[Check]) -> str:
    """The evidence of a move as text, a line for each check."""
    return "".join(
        "\x1f".join(
            _line(text)
            for text in (
                item.kind,
                str(int(item.passed)),
                item.requirement,
                item.finding,
                item.remedy,
                *item.evidence,
            )
        )
        + "\n"
        for item in checks
    )


def checks_of(evidence: str) -> list[Check]:
    """What :func:`evidence_text` wrote."""
    checks = []
    for line in evidence.split("\n")[:-1]:
        kind, passed, requirement, finding, remedy, *shown = line.split("\x1f")
        checks.append(Check(kind, passed == "1", requirement, finding, remedy, tuple(shown)))
    return checks


def _line(text: str) -> str:
    """Without what separates: nothing of it may read as another check."""
    return " ".join(text.replace("\x1f", " ").split())


def verify(moves: Iterable[tuple[Move, bytes]]) -> int:
    """Check moves, oldest first and from the first one on, against their hashes; returns how many.

    Raises:
        DataLoss: which move was changed, left out or put in.
    """
    count, head, number = 0, GENESIS, 0
    for move, claimed in moves:
        count += 1
        broken = (
            (move.sequence != count and f"is number {move.sequence} where {count} must stand")
            or (move.previous_hash != head and "does not follow the one before it")
            or (move.previous != number and "tells another version before it")
            or (move.hash != claimed and "was changed")
        )
        if broken:
            raise DataLoss(
                f"move {move.sequence} of {move.alias} {broken}; compare with the audit log and a backup",
                reason="HISTORY_BROKEN",
                sequence=str(move.sequence),
            )
        head, number = claimed, move.number
    return count


def shortened(alias: str, count: int, claimed: int) -> DataLoss:
    """The error where moves are missing at the end."""
    return DataLoss(
        f"{alias} was moved {claimed} times and {count} moves are told; compare with the audit log and a backup",
        reason="HISTORY_BROKEN",
        sequence=str(count),
    )
