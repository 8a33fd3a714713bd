"""A PostgreSQL server of its own in a folder: Debian's binaries, a socket, no network."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin")


def binaries() -> Path | None:
    """Folder with initdb and postgres; the newest where there are several."""
    for pattern in _PLACES:
        found = sorted(Path("/").glob(pattern.lstrip("/")), key=lambda path: path.parent.name)
        if found and (found[-1] / "initdb").exists():
            return found[-1]
    there = shutil.which("initdb")
    return Path(there).parent if there else None


@contextmanager
def server() -> Iterator[str]:
    """The URL of a running server; skips the test where there are no binaries."""
    folder = binaries()
    if folder is None:
        pytest.skip("no PostgreSQL server is installed; apt install postgresql")
    # Short: the path of a socket has room for some hundred characters.
    root = Path(tempfile.mkdtemp(prefix="pg-"))
    user = _owner(root)
    try:
        data, common = root / "data", {"user": user, "cwd": root, "stdout": subprocess.DEVNULL}
        subprocess.run(
            [folder / "initdb", "-D", data, "-U", "sealane", "-A", "trust", "-E", "UTF8", "--locale=C"],
            check=True,
            timeout=60,
            stderr=subprocess.PIPE,
            **common,
        )
        options = [f"-k{root}", "-c", "listen_addresses=", "-c", "max_connections=30"]
        process = subprocess.Popen([folder / "postgres", "-D", data, *options], stderr=subprocess.DEVNULL, **common)
        try:
            ready = [folder / "pg_isready", "-q", "-h", str(root), "-U", "sealane", "-t", "1"]
            for _ in range(60):
                if subprocess.run(ready, check=False).returncode == 0:
                    break
                assert process.poll() is None, "the server ended"
            yield f"postgresql+psycopg://sealane@/postgres?host={root}"
        finally:
            process.terminate()
            process.wait(30)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _owner(root: Path) -> str | None:
    """Root may not run it: then somebody else does, who owns the folder."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    name = "postgres" if "postgres" in known else "nobody"
    shutil.chown(root, name)
    return name
