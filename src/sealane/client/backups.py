"""Backups of the registry, taken while it works; what a folder has already is not fetched again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

from sealane.client.artifacts import Progress, no_progress
from sealane.client.session import Session
from sealane.errors import DataLoss
from sealane.registry.v1 import backup_service_pb2 as pb
from sealane.registry.v1 import backup_service_pb2_grpc

#: What lies in the folder of a backup; the manifest is written last, so one without it is not whole.
MANIFEST, RECORDS, ARTIFACTS = "manifest.json", "records.jsonl", "artifacts"


class Backups:
    """Copies of everything that the registry keeps, of all projects. For operators of the platform."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def take(self, folder: Path | str, *, progress: Progress = no_progress) -> dict[str, int]:
        """Write a backup to `folder`, over an older one; returns the rows of each table.

        It is of one moment: everything acknowledged before is in it. It is whole once ``manifest.json`` is there.

        Raises:
            DataLoss: what arrived does not match its digest; the backup is not whole.
        """
        root = Path(folder)
        (root / ARTIFACTS).mkdir(parents=True, exist_ok=True, mode=0o700)
        (root / MANIFEST).unlink(missing_ok=True)
        partial = root / f"{RECORDS}.part"
        with partial.open("wb") as file:
            header, trailer, digest = self._records(file)
        if trailer is None or digest != trailer.sha256:
            raise DataLoss("the records did not arrive whole; take the backup again", reason="BACKUP_BROKEN")
        partial.replace(root / RECORDS)
        artifacts = _artifacts_in(root / RECORDS)
        for place, (sha256, size) in enumerate(artifacts.items()):
            self._artifact(sha256, size, root / ARTIFACTS / sha256[:2] / sha256)
            progress("artifacts", place + 1, len(artifacts))
        manifest = {
            "schema_revision": header.schema_revision,
            "time": header.export_time.ToJsonString(),
            "rows": dict(trailer.rows),
            "sha256": digest.hex(),
            "artifacts": artifacts,
        }
        (root / f"{MANIFEST}.part").write_text(json.dumps(manifest, indent=1))
        (root / f"{MANIFEST}.part").replace(root / MANIFEST)
        return dict(trailer.rows)

    def _records(self, file: BinaryIO) -> tuple[pb.ExportHeader, pb.ExportTrailer | None, bytes]:
        hasher, header, trailer = hashlib.sha256(), pb.ExportHeader(), None
        for part in self._stub().ExportRecords(pb.ExportRecordsRequest()):
            if part.HasField("header"):
                header = part.header
            elif part.HasField("trailer"):
                trailer = part.trailer
            else:
                hasher.update(part.lines)
                file.write(part.lines)
        return header, trailer, hasher.digest()

    def _artifact(self, sha256: str, size: int, path: Path) -> None:
        if path.exists() and path.stat().st_size == size:
            return  # what it holds is checked when it is restored
        path.parent.mkdir(exist_ok=True)
        partial, hasher = path.with_suffix(".part"), hashlib.sha256()
        with partial.open("wb") as file:
            for part in self._stub().ExportArtifact(pb.ExportArtifactRequest(sha256=sha256)):
                hasher.update(part.data)
                file.write(part.data)
        if hasher.hexdigest() != sha256:
            raise DataLoss(
                f"artifact {sha256} arrived with another digest; take the backup again", reason="BACKUP_BROKEN"
            )
        partial.replace(path)

    def _stub(self) -> backup_service_pb2_grpc.BackupServiceStub:
        return backup_service_pb2_grpc.BackupServiceStub(self._session.channel("registry"))


def _artifacts_in(records: Path) -> dict[str, int]:
    found = {}
    with records.open("rb") as lines:
        for line in lines:
            if line.startswith(b'["artifacts",'):
                row = json.loads(line)[1]
                found[row["sha256"]] = row["size"]
    return found
