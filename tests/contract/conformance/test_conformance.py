"""Real clients, unmodified, each in an environment of its own, at the gateway and directly at a worker (PROTO-1).

One test is one cell. docs/conformance.md shows them; `make conformance` writes it anew.
"""

from __future__ import annotations

import conformance_matrix as matrix
import pytest
from conformance_matrix import Client
from conformance_runs import Runs

pytestmark = [pytest.mark.stack, pytest.mark.tensorflow, pytest.mark.timeout(600)]
CELLS = list(matrix.cells())
APPLICABLE = [cell for cell in CELLS if not matrix.not_applicable(cell[0], cell[2], cell[1])]


@pytest.mark.parametrize("cell", APPLICABLE, ids=lambda cell: f"{cell[0].id}-{cell[1]}-{cell[2]}")
def test_cell(runs: Runs, cell: tuple[Client, str, str]) -> None:
    client, place, row = cell
    if client.missing:
        pytest.skip(client.missing)
    outcome, note = runs.outcome(client, place, row), matrix.cannot(client, row, place)
    if note is None:
        assert outcome == "ok"
        return
    assert outcome != "ok", f"it is ok now: take the note out of the table ({note.reason})"
    pytest.xfail(f"{note.reason}: {outcome}")


def test_the_figure(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """As many cells are not ok as the table says, of those that were run."""
    expected = 0
    count = dict.fromkeys(("ok", "not ok", "not run"), 0)
    for client, place, row in APPLICABLE:
        if client.missing or (client.id, place) not in runs.asked:
            count["not run"] += 1
            continue
        expected += matrix.cannot(client, row, place) is not None
        count["ok" if runs.outcome(client, place, row) == "ok" else "not ok"] += 1
    with capsys.disabled():
        print(
            f"\nfigure: {count['ok']} cells ok, {len(CELLS) - len(APPLICABLE)} not applicable, {count['not ok']} not ok"
            + (f", {count['not run']} not run" if count["not run"] else "")
        )
    assert count["not ok"] == expected
