"""The peers' Python environments: one each, since what they need does not go together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = ROOT / "requirements" / "peers"


def install(folder: Path, names: set[str]) -> dict[str, str]:
    """Make the environments that are missing or older than their requirements; names that failed, with the reason."""
    failed = {}
    for name in sorted(names):
        wanted, made = REQUIREMENTS / f"{name}.in", folder / name / ".installed"
        if made.exists() and made.read_text() == wanted.read_text():
            continue
        print(f"installing {name} ...", flush=True)
        uv, python = [str(Path(sys.executable).parent / "uv")], str(folder / name / "bin" / "python")
        steps = (
            [*uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder / name)],
            [*uv, "pip", "install", "-q", "--compile-bytecode", "--python", python, "-r", str(wanted)],
        )
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                failed[name] = "cannot be installed: " + " ".join(done.stderr.split())[:300]
                break
        else:
            made.write_text(wanted.read_text())
    return failed


def version(folder: Path, name: str) -> str:
    """The server that the environment holds, with its version: the first of its requirements."""
    return next(line for line in (folder / name / ".installed").read_text().splitlines() if "==" in line)
