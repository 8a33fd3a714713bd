"""``python -m sealane_registry.restore BACKUP --data DIR``: makes a registry of a backup, where there is none yet."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import sqlalchemy as sa

from sealane.client.backups import ARTIFACTS, MANIFEST, RECORDS
from sealane.errors import DataLoss, FailedPrecondition, SealaneError
from sealane.records.database import Database
from sealane.records.migrate import migrate
from sealane_registry import export, schema
from sealane_registry.blob_folder import FolderStore
from sealane_registry.plain_copies import plain_key

MIGRATIONS = Path(__file__).parent / "migrations"


def restore(backup: Path, data_dir: Path, url: str = "") -> dict[str, int]:
    """Make the records and artifacts; returns the rows by table.

    Args:
        backup: folder of the backup.
        data_dir: data directory of the registry to be, without records.
        url: database; SQLite in `data_dir` by default.

    Raises:
        FailedPrecondition: there is a registry already (NOT_EMPTY), or the backup is not whole (BACKUP_NOT_WHOLE).
        DataLoss: something in the backup does not match its digest (BACKUP_BROKEN).
    """
    manifest = _manifest(backup)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = data_dir / "registry.db"
    if not url and file.exists():
        raise FailedPrecondition(f"{file} is there already; restore into an empty folder", reason="NOT_EMPTY")
    _check_records(backup / RECORDS, manifest["sha256"])
    _put_artifacts(backup, FolderStore(data_dir / "cas"), manifest["artifacts"])
    database = Database(url) if url else Database.at(file)
    found: dict[str, int] = {}

    def fill(connection: sa.Connection) -> None:
        migrate(connection, MIGRATIONS)
        if connection.execute(sa.select(schema.models.c.model).limit(1)).first():
            raise FailedPrecondition("the database has models already; restore into an empty one", reason="NOT_EMPTY")
        with (backup / RECORDS).open("rb") as lines:
            found.update(export.read(connection, lines))

    try:
        database.start(fill)
    finally:
        database.close()
    if found != {**dict.fromkeys(found, 0), **manifest["rows"]}:
        raise DataLoss("the backup's records are not all that it says; take another one", reason="BACKUP_BROKEN")
    return found


def _manifest(backup: Path) -> dict[str, dict[str, int]]:
    try:
        found: dict[str, dict[str, int]] = json.loads((backup / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"{backup} is no whole backup; take it again with 'sealane backup'", reason="BACKUP_NOT_WHOLE"
        ) from error
    return found


def _check_records(path: Path, sha256: object) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise DataLoss("the backup's records do not match their digest; use another backup", reason="BACKUP_BROKEN")


def _put_artifacts(backup: Path, store: FolderStore, artifacts: dict[str, int]) -> None:
    for sha256 in artifacts:
        path = backup / ARTIFACTS / sha256[:2] / sha256
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            found = ""
        if found != sha256:
            raise DataLoss(f"artifact {sha256} of the backup is missing or damaged", reason="BACKUP_BROKEN")
        store.put(plain_key(sha256), path)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="sealane restore", description="Make a registry of a backup.")
    parser.add_argument("backup", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="data directory of the installation to be")
    parser.add_argument("--database", default="", help="postgresql+psycopg://...; SQLite by default")
    wanted = parser.parse_args()
    try:
        rows = restore(wanted.backup, wanted.data / "registry", wanted.database)
    except SealaneError as error:
        sys.stderr.write(f"error: {error.message} [{error.reason}]\n")
        return 1
    sys.stdout.write(f"restored {rows['models']} models, {rows['versions']} versions, {rows['artifacts']} artifacts\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
