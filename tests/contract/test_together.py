"""Sealane beside the client libraries of the protocols in one process, protobuf 6.31 to 7: no descriptor clashes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "contract" / "real_clients" / "together.py"
#: Environment -> library in it, and the series of protobuf that it has.
ENVIRONMENTS = {
    ".venv-together": ("tritonclient", "6.31."),
    ".venv-kserve": ("kserve", "6.33."),
    ".venv": ("tfserving", "7."),
}


@pytest.mark.parametrize("order", ["sealane-first", "sealane-last"])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_both_are_imported_and_read_each_other(environment: str, order: str) -> None:
    library, series = ENVIRONMENTS[environment]
    python = ROOT / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{environment} is not built; `make test` does")
    if library == "tfserving":
        pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")
    paths = ("src", "services/inference", "services/worker")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / path) for path in paths)}
    run = subprocess.run(
        [python, SCRIPT, library, order], capture_output=True, text=True, timeout=120, env=environ, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["protobuf"].startswith(series)
    assert told["compared"] == 1
