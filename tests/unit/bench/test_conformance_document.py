"""docs/conformance.md has the rows, columns and notes of the matrix's own tables: it cannot go stale silently."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "tests" / "contract" / "conformance"))

import conformance  # noqa: E402
import conformance_matrix as matrix  # noqa: E402

TEXT = (ROOT / "docs" / "conformance.md").read_text()


def table(family: str) -> list[list[str]]:
    """The lines of a family's table, its rule aside."""
    section = TEXT.partition(f"## {family}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("family", [matrix.OIP, matrix.TFS])
def test_it_has_all_rows_and_columns(family: str) -> None:
    head, *lines = table(family)
    assert head == [client.title for client in matrix.CLIENTS if client.family == family]
    assert [line[0] for line in lines] == [conformance.title(row) for row in matrix.rows()[family]]


@pytest.mark.parametrize("family", [matrix.OIP, matrix.TFS])
def test_its_cells_are_those_of_the_table(family: str) -> None:
    clients = [client for client in matrix.CLIENTS if client.family == family]
    notes = dict(re.findall(r"(?m)^(\d+)\. (.*)$", TEXT.partition("## Notes\n")[2]))
    for row, (_, *cells) in zip(matrix.rows()[family], table(family)[1:], strict=True):
        for client, cell in zip(clients, cells, strict=True):
            told = cell.split(", ")
            for place, word in zip(matrix.PLACES, told if len(told) == 2 else told * 2, strict=True):
                if client.http and place == "worker":
                    continue
                absent, failing = matrix.not_applicable(client, row, place), matrix.cannot(client, row, place)
                where = f"{client.id} {place} {row}: run `make conformance`"
                note = absent or failing
                if note is None:
                    assert word == "ok", where
                    continue
                number = re.fullmatch(r"(\*\*no\*\* )?\[(\d+)\]", word)
                assert number is not None and notes[number[2]] == note.reason, where
                assert bool(number[1]) == (absent is None), where


def test_every_note_covers_a_cell() -> None:
    cells = list(matrix.cells())
    for note in (*matrix.NOT_APPLICABLE, *matrix.CANNOT):
        assert any(note.covers(client, row, place) for client, place, row in cells), note
    for client, place, row in cells:
        assert not (matrix.not_applicable(client, row, place) and matrix.cannot(client, row, place)), (client, row)


def test_its_versions_are_those_of_the_locks() -> None:
    for name, version in conformance.versions().items():
        assert f"| {name} | {version} |" in TEXT
