"""AUTH-9: whatever is done to any of 10,000 audit rows is found, and the first bad row is named."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from audit_parts import Pki, checkpoint, resealed, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from sealane.security.audit_checkpoint import Checkpoint, Notary
from sealane.security.audit_log import AuditRow, Bounds, Kind, LogCheck, Report, verify

ROWS = 10_000
EVERY = 1000  # a checkpoint after so many rows
EDGES = (1, 2, 3, 999, 1000, 1001, 4711, 5000, 9_000, 9_001, 9_998, 9_999, 10_000)
LONG = bool(os.environ.get("LONG"))

#: One edit per column, each to another value of the column's own kind.
EDITS: dict[str, Callable[[AuditRow], AuditRow]] = {
    "id": lambda row: replace(row, id=row.id + 1_000_000),
    "time": lambda row: replace(row, time_ns=row.time_ns + 1),
    "project": lambda row: replace(row, project=row.project + "x"),
    "actor": lambda row: replace(row, actor="somebody-else"),
    "action": lambda row: replace(row, action=row.action + " "),
    "resource": lambda row: replace(row, resource=row.resource.upper()),
    "request_id": lambda row: replace(row, request_id=""),
    "details": lambda row: replace(row, details="{}"),
    "hash": lambda row: replace(row, hash=bytes(32)),
    "no hash": lambda row: replace(row, hash=b""),
    "border": lambda row: replace(row, project=row.project + row.actor[0], actor=row.actor[1:]),
}


class Log:
    """10,000 rows with a checkpoint after each thousand."""

    def __init__(self, pki: Pki, identity: object) -> None:
        self.rows = rows(ROWS)
        self.pki = pki
        self.notary = Notary("registry", pki.trust)
        self.checkpoints = [checkpoint(row, identity) for row in self.rows[EVERY - 1 :: EVERY]]  # type: ignore[arg-type]

    def check(
        self, damaged: list[AuditRow], checkpoints: list[Checkpoint] | None = None, bounds: Bounds | None = None
    ) -> Report:
        marks = self.checkpoints if checkpoints is None else checkpoints
        return verify(damaged, marks, self.notary, bounds)

    def at(self, sequence: int, bounds: Bounds | None = None) -> LogCheck:
        """A check that has read everything before a row; with `bounds` it knows these and no checkpoint."""
        later = [] if bounds else [item for item in self.checkpoints if item.sequence >= sequence]
        check = LogCheck(self.notary, iter(later), bounds or Bounds())
        if sequence > 1:
            before = self.rows[sequence - 2]
            check.last_sequence, check.last_hash, check.last_id = sequence - 1, before.hash, before.id
        return check


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    pki = Pki.make()
    return Log(pki, pki.service(tmp_path_factory.mktemp("identity")))


def named(report: Report) -> tuple[Kind, int]:
    assert report.fault is not None
    return report.fault.kind, report.fault.sequence


def test_a_whole_log_is_well(log: Log) -> None:
    report = log.check(log.rows, bounds=Bounds(last_id=ROWS, dense=True))
    assert report == Report("registry", ROWS, ROWS, 0, ROWS // EVERY, None)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_every_row_altered_in_every_column_is_named(log: Log, edit: Callable[[AuditRow], AuditRow]) -> None:
    """All 10,000 rows: a check that stands before the row must stop at it."""
    for sequence in range(1, ROWS + 1):
        fault = log.at(sequence).row(edit(log.rows[sequence - 1]))
        assert fault is not None and (fault.kind, fault.sequence) == (Kind.ALTERED, sequence)


def test_every_row_deleted_is_named(log: Log) -> None:
    for sequence in range(1, ROWS):
        fault = log.at(sequence).row(log.rows[sequence])
        assert fault is not None and (fault.kind, fault.sequence) == (Kind.MISSING, sequence)


def test_every_pair_of_neighbours_swapped_is_named(log: Log) -> None:
    """In the table a swap is one of their places: each row then stands where the other belongs."""
    for sequence in range(1, ROWS):
        first, second = log.rows[sequence - 1 : sequence + 1]
        fault = log.at(sequence).row(replace(second, sequence=sequence))
        assert fault is not None and (fault.kind, fault.sequence) == (Kind.ALTERED, sequence)
        assert log.at(sequence).row(first) is None


def test_every_truncation_is_named_by_the_table_and_by_a_later_checkpoint(log: Log) -> None:
    for kept in range(ROWS):
        fault = log.at(kept + 1).end()
        assert fault is not None and (fault.kind, fault.sequence) == (Kind.TRUNCATED, kept + 1)
        fault = log.at(kept + 1, Bounds(last_id=ROWS, dense=True)).end()
        assert fault is not None and (fault.kind, fault.sequence) == (Kind.TRUNCATED, kept + 1)


@pytest.mark.parametrize(("sequence", "edit"), list(zip(EDGES, itertools.cycle(EDITS), strict=False)))
def test_the_whole_check_names_an_altered_row(log: Log, sequence: int, edit: str) -> None:
    damaged = list(log.rows)
    damaged[sequence - 1] = EDITS[edit](damaged[sequence - 1])
    assert named(log.check(damaged)) == (Kind.ALTERED, sequence)


@pytest.mark.parametrize("sequence", EDGES)
def test_the_whole_check_names_what_was_taken_out(log: Log, sequence: int) -> None:
    damaged = [*log.rows[: sequence - 1], *log.rows[sequence:]]
    kind = Kind.TRUNCATED if sequence == ROWS else Kind.MISSING
    assert named(log.check(damaged)) == (kind, sequence)


@pytest.mark.parametrize("sequence", EDGES[:-1])
def test_the_whole_check_names_rows_in_another_order(log: Log, sequence: int) -> None:
    damaged = list(log.rows)
    damaged[sequence - 1], damaged[sequence] = damaged[sequence], damaged[sequence - 1]
    assert named(log.check(damaged)) == (Kind.MISSING, sequence)  # as a file: the row is not where it belongs
    again = [*log.rows[:sequence], log.rows[sequence - 1], *log.rows[sequence:]]
    assert named(log.check(again)) == (Kind.REORDERED, sequence)


@pytest.mark.parametrize("sequence", EDGES)
def test_a_row_put_in_between_is_named(log: Log, sequence: int) -> None:
    forged = replace(log.rows[0], id=ROWS + 1, actor="nobody", sequence=sequence)
    shifted = [replace(row, sequence=(row.sequence or 0) + 1) for row in log.rows[sequence - 1 :]]
    assert named(log.check([*log.rows[: sequence - 1], forged, *shifted])) == (Kind.ALTERED, sequence)


@pytest.mark.parametrize("sequence", EDGES)
def test_a_log_written_anew_with_fitting_hashes_contradicts_a_checkpoint(log: Log, sequence: int) -> None:
    index = sequence - 1
    damaged = [*log.rows[:index], replace(log.rows[index], actor="nobody"), *log.rows[sequence:]]
    forged = resealed(damaged, index)
    assert log.check(forged, []).fault is None, "the form is public: without a checkpoint nothing shows"
    kind, first = named(log.check(forged))
    assert kind == Kind.REWRITTEN
    assert first <= sequence <= first + EVERY - 1


@given(data=st.data())
@settings(max_examples=2000 if LONG else 60, deadline=None)
def test_any_damage_is_found_at_or_before_the_first_row_that_it_touches(log: Log, data: st.DataObject) -> None:
    damaged = list(log.rows)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(damaged) - 1))
        action = data.draw(st.sampled_from(["delete", "cut", "copy", "move", *EDITS]))
        if action == "delete":
            del damaged[index]
        elif action == "cut":
            del damaged[index:]
        elif action == "copy":
            damaged.insert(index + 1, damaged[index])
        elif action == "move":
            other = data.draw(st.integers(0, len(damaged) - 1))
            damaged.insert(other, damaged.pop(index))
        else:
            damaged[index] = EDITS[action](damaged[index])
        if not damaged:
            break
    report = log.check(damaged)
    if damaged == log.rows:
        assert report.fault is None
        return
    assert report.fault is not None
    touched = next((i for i, row in enumerate(log.rows) if i >= len(damaged) or damaged[i] != row), ROWS) + 1
    assert report.last_sequence == touched - 1, "everything before the first damaged row was found well"
    assert report.fault.sequence in (touched, damaged[touched - 1].sequence if touched <= len(damaged) else touched)


def test_rows_that_wait_for_their_seal_are_counted_and_old_ones_are_a_fault(log: Log) -> None:
    waiting = replace(log.rows[0], id=ROWS + 1, time_ns=log.rows[-1].time_ns, sequence=None, hash=b"")
    later = replace(waiting, id=ROWS + 2)
    report = log.check([*log.rows, waiting, later], bounds=Bounds(ROWS + 2, dense=True))
    assert (report.unsealed, report.fault) == (2, None)
    assert named(log.check([*log.rows, later], bounds=Bounds(ROWS + 2, dense=True)))[0] == Kind.MISSING
    assert named(log.check([*log.rows, waiting], bounds=Bounds(ROWS + 2, dense=True)))[0] == Kind.TRUNCATED
    old = Bounds(ROWS + 1, dense=True, unsealed_before_ns=waiting.time_ns + 1)
    assert named(log.check([*log.rows, waiting], bounds=old))[0] == Kind.UNSEALED
