"""The suite that the matrix is asked of."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conformance_matrix import ROOT
from conformance_runs import Runs
from conformance_site import place_of, running

#: Read by tools/conformance.py.
RESULTS = ROOT / "var" / "conformance.json"


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """All that this session asks for; their outcomes go to `RESULTS`."""
    folder = tmp_path_factory.mktemp("conformance")
    asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {(told["cell"][0].id, told["cell"][1]) for told in asked if "cell" in told}
    with running(folder) as site:
        place_of(site, "gateway", folder)  # makes the certificate, once
        runs = Runs(site, folder, wanted)
        try:
            yield runs
        finally:
            runs.close()
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(runs.results(), indent=1) + "\n")
