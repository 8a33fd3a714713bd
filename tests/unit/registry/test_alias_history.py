"""A history that shows every edit, and what was known at each move."""

from __future__ import annotations

import dataclasses

import pytest
from registry_site import BOB, Site

from sealane.errors import Aborted, DataLoss, FailedPrecondition, NotFound
from sealane.records.listing import Listing
from sealane.security import alias_history
from sealane.security.alias_history import Check, Move, checks_of, evidence_text
from sealane_registry.rows import MoveRow, Scope, UseRow


def move_of(row: MoveRow) -> tuple[Move, bytes]:
    name = f"projects/{row.project}/models/{row.model}/aliases/{row.alias}"
    move = Move(
        name,
        row.sequence,
        row.number,
        row.previous,
        row.time_us,
        row.mover,
        row.evidence,
        bytes.fromhex(row.previous_hash),
    )
    return move, bytes.fromhex(row.hash)


def history(site: Site, alias: str = "production") -> list[tuple[Move, bytes]]:
    every = Listing((), "sequence", False, 2**31)
    return [move_of(row) for row in site.store.moves(Scope("p", "digits", name=alias), every)]


def test_before_its_first_move_an_alias_was_nothing(site: Site) -> None:
    site.clock.advance(100)
    site.move(site.push())
    scope = Scope("p", "digits", name="production")
    with pytest.raises(NotFound):
        site.aliases.as_of(site.store, scope, site.clock.now() - 1)
    assert site.aliases.as_of(site.store, scope, None).number == 1


def test_a_move_keeps_who_and_what_was_known(site: Site) -> None:
    version = site.push()
    site.checked(version)
    site.limits.report_uses(site.store, [UseRow("p", "alias", "digits/production", "projects/p/deployments/d")])
    site.move(version)
    ((move, _),) = history(site)
    assert move.mover == BOB.subject
    assert [(item.kind, item.passed) for item in checks_of(move.evidence)] == [("STATE", True), ("LOADABLE", True)]


EDITS = {
    "another version": lambda moves: [_edit(moves[0], number=2), *moves[1:]],
    "another time": lambda moves: [_edit(moves[0], time_us=1), *moves[1:]],
    "another mover": lambda moves: [_edit(moves[0], mover="eve"), *moves[1:]],
    "other evidence": lambda moves: [_edit(moves[0], evidence="x\n"), *moves[1:]],
    "another alias": lambda moves: [_edit(moves[0], alias="a"), *moves[1:]],
    "one left out": lambda moves: [moves[0], *moves[2:]],
    "the first left out": lambda moves: moves[1:],
    "one twice": lambda moves: [moves[0], moves[0], *moves[1:]],
    "exchanged": lambda moves: [moves[1], moves[0], *moves[2:]],
    "sealed anew": lambda moves: [_sealed(moves[0], number=2), *moves[1:]],
}


def _edit(item: tuple[Move, bytes], **fields: object) -> tuple[Move, bytes]:
    return dataclasses.replace(item[0], **fields), item[1]  # type: ignore[arg-type]


def _sealed(item: tuple[Move, bytes], **fields: object) -> tuple[Move, bytes]:
    """By somebody who can compute hashes too: the next move shows it."""
    move = dataclasses.replace(item[0], **fields)  # type: ignore[arg-type]
    return move, move.hash


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_shows(site: Site, edit: str) -> None:
    versions = [site.push(), site.push()]
    for place in range(4):
        site.move(versions[place % 2])
    moves = history(site)
    assert alias_history.verify(moves) == 4
    with pytest.raises(DataLoss) as broken:
        alias_history.verify(EDITS[edit](moves))
    assert broken.value.reason == "HISTORY_BROKEN"


def test_an_alias_that_was_taken_away_comes_back_with_its_history(site: Site) -> None:
    version = site.push()
    row = site.move(version)
    site.aliases.delete(site.store, BOB, Scope("p", "digits", name="production"), row.etag)
    with pytest.raises(NotFound):
        site.aliases.get(site.store, Scope("p", "digits", name="production"))
    with pytest.raises(NotFound):
        site.catalog.find_version(site.store, Scope("p", "digits"), "production")
    assert site.store.aliases("p", "digits") == []
    with pytest.raises(Aborted):
        site.move(version, etag=row.etag)
    assert site.move(version).moves == 3
    assert [move.number for move, _ in history(site)] == [1, 0, 1]


def test_what_a_deployment_goes_by_is_not_taken_away(site: Site) -> None:
    row = site.move(site.push())
    site.limits.report_uses(site.store, [UseRow("p", "alias", "digits/production", "projects/p/deployments/d")])
    with pytest.raises(FailedPrecondition) as refused:
        site.aliases.delete(site.store, BOB, Scope("p", "digits", name="production"), row.etag)
    assert refused.value.reason == "ALIAS_IN_USE"


def test_evidence_reads_back_and_cannot_forge_a_line() -> None:
    checks = [Check("STATE", True, "a", "b"), Check("LINEAGE", False, "c\x1fd", "e\nSTATE\x1f1", "f", ("g h", "i"))]
    read = checks_of(evidence_text(checks))
    assert [item.kind for item in read] == ["STATE", "LINEAGE"]
    assert evidence_text(read) == evidence_text(checks)
