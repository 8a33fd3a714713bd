"""REG-8: a backup while models are pushed, restored elsewhere, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from control_plane import ControlPlane, Service

from sealane.client import Client, connect
from sealane.errors import PermissionDenied
from sealane.tensors import Signature, TensorSpec

pytestmark = pytest.mark.stack
SIGNATURE = Signature((TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path_factory.mktemp("plane"))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def push(client: Client, folder: Path, name: str, content: bytes) -> str:
    """A model whose content is its own; returns the version's name."""
    path = folder / f"{name}.tflite"
    path.write_bytes(content)
    return client.models.push(path, name, signatures=[SIGNATURE], alias="production").name


def restore(backup: Path, data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sealane_registry.restore", str(backup), "--data", str(data), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def serve(plane: ControlPlane, data: Path, database: str = "") -> tuple[Service, Path]:
    """A registry on restored data, and a home that points at it."""
    with connect(plane.home) as client:
        (data / "token").write_text(client.join_tokens.create(service="registry").token)
    settings = {**plane.services["registry"].settings, "JOIN_TOKEN": str(data / "token")}
    if database:
        settings["DATABASE"] = database
    service = Service("registry", data / "registry", settings)
    port = service.start()["client"]
    home = data / "home"
    shutil.copytree(plane.home / "pki", home / "pki")
    shutil.copy(plane.home / "admin.json", home / "admin.json")
    endpoints = json.loads((plane.home / "endpoints.json").read_text())
    (home / "endpoints.json").write_text(json.dumps({**endpoints, "registry": f"127.0.0.1:{port}"}))
    return service, home


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_was_acknowledged_before_a_backup_is_in_it(plane: ControlPlane, tmp_path: Path, database: str) -> None:
    acknowledged: dict[str, bytes] = {}
    stop, backup = threading.Event(), tmp_path / "backup"

    def write(client: Client, folder: Path) -> None:
        place = 0
        while not stop.is_set():
            name, content = f"{database}-{place}", os.urandom(2000)
            push(client, folder, name, content)
            acknowledged[name] = content
            place += 1

    with connect(plane.home) as client:
        shared = os.urandom(3 << 20)
        push(client, tmp_path, f"{database}-large", shared)
        writer = threading.Thread(target=write, args=(client, tmp_path))
        writer.start()
        try:
            while len(acknowledged) < 10:
                assert writer.is_alive()
            before = dict(acknowledged)
            rows = client.backups.take(backup)
            after = len(acknowledged)
        finally:
            stop.set()
            writer.join(30)
    assert rows["models"] >= len(before) and after >= len(before)

    if database == "sqlite":
        check_restored(plane, backup, tmp_path / "elsewhere", before, shared)
    else:
        with postgres.server() as url:
            check_restored(plane, backup, tmp_path / "elsewhere", before, shared, url)


def check_restored(
    plane: ControlPlane, backup: Path, data: Path, before: dict[str, bytes], shared: bytes, url: str = ""
) -> None:
    done = restore(backup, data, *(["--database", url] if url else []))
    assert done.returncode == 0, done.stderr
    service, home = serve(plane, data, url)
    try:
        with connect(home) as client:
            there = {item.name.rpartition("/")[2] for item in client.models.list()}
            assert there >= before.keys()
            for name in there:
                # What is there is whole: also what was pushed while the backup was taken.
                versions = list(client.models.versions(name))
                assert len(versions) in (0, 1) or not name.startswith(("sqlite", "postgresql"))
                for version in versions:
                    client.models.pull(version.name, data / "pulled" / name)
            for name, content in before.items():
                assert (data / "pulled" / name / f"{name}.tflite").read_bytes() == content
                assert client.models.verify_history(name, "production") == 1
            large = next(name for name in there if name.endswith("-large"))
            assert (data / "pulled" / large / f"{large}.tflite").read_bytes() in (shared, *before.values()) or url
            assert not client.audit.verify("registry").HasField("fault")
            # It goes on from where it was.
            name = next(iter(before))
            assert push(client, data, name, b"the next one").endswith("/versions/2")
            assert client.models.verify_history(name, "production") == 2
    finally:
        service.stop()


def test_a_damaged_or_unfinished_backup_is_refused_and_nothing_is_made(plane: ControlPlane, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    with connect(plane.home) as client:
        push(client, tmp_path, "damaged", b"some content")
        client.backups.take(backup)
        first = sorted(path for path in (backup / "artifacts").rglob("*") if path.is_file())
        stamps = [path.stat().st_mtime_ns for path in first]
        client.backups.take(backup)
        assert [path.stat().st_mtime_ns for path in first] == stamps, "what is there is not fetched again"
    sound = first[0].read_bytes()
    for path, content in (
        (first[0], bytes([sound[0] ^ 1]) + sound[1:]),
        (backup / "records.jsonl", (backup / "records.jsonl").read_bytes()[:-2]),
    ):
        kept = path.read_bytes()
        path.write_bytes(content)
        refused = restore(backup, tmp_path / "broken")
        assert refused.returncode == 1 and "BACKUP_BROKEN" in refused.stderr
        assert not (tmp_path / "broken" / "registry" / "registry.db").exists()
        path.write_bytes(kept)
    (backup / "manifest.json").rename(backup / "manifest.json.part")
    assert "BACKUP_NOT_WHOLE" in restore(backup, tmp_path / "broken").stderr
    (backup / "manifest.json.part").rename(backup / "manifest.json")
    assert restore(backup, tmp_path / "made").returncode == 0
    assert "NOT_EMPTY" in restore(backup, tmp_path / "made").stderr


def test_a_tenant_takes_no_backup(plane: ControlPlane, tmp_path: Path) -> None:
    from sealane.client import ClientCredentials

    with connect(plane.home) as admin:
        account = admin.accounts.create("tenant", (), roles=["admin"])
    credentials = ClientCredentials(account.client_id, account.client_secret)
    with connect(plane.home, credentials=credentials) as client, pytest.raises(PermissionDenied):
        client.backups.take(tmp_path / "backup")
