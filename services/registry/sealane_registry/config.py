"""Configuration of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREFIX = "SEALANE_REGISTRY_"


@dataclass(frozen=True, slots=True)
class Config:
    """Read from ``SEALANE_REGISTRY_*``."""

    data_dir: Path
    """Folder for the database, the artifacts, the certificate and `ports.json`."""
    auth: str
    """Client port of auth, `host:port`."""
    auth_mesh: str
    """Mesh port of auth, `host:port`."""
    trust_bundle: Path
    """File with the root certificates."""
    join_token: Path | None = None
    """File with the join token; needed before the first start."""
    listen: str = "127.0.0.1:0"
    """Client port."""
    mesh_listen: str = "127.0.0.1:0"
    """Mesh port."""
    database: str = ""
    """``postgresql+psycopg://user@host/name``; empty for SQLite in `data_dir`. A password stands in the usual
    ``PGPASSFILE``."""
    max_project_bytes: int = 0
    """Most bytes of artifacts of a project that has no quota of its own; 0 is without limit."""
    max_models: int = 0
    """Most models of such a project; 0 is without limit."""
    max_versions: int = 0
    """Most versions of each model of such a project; 0 is without limit."""
    collect_seconds: float = 3600.0
    """Wait between two rounds in which artifacts that nothing refers to are removed; 0 for none."""
    artifact_store: str = ""
    """Where finished artifacts lie: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``; empty
    for a folder in `data_dir`. Uploads under way are in `data_dir` always."""
    artifact_store_endpoint: str = ""
    """``https://host:port`` of a server that speaks the store's protocol; empty for the provider's own."""
    artifact_store_credentials_file: Path | None = None
    """File with ``name=value`` lines such as ``aws_access_key_id=...``; without it the provider's usual variables and
    the machine's own identity are taken."""
    artifact_store_allow_http: bool = False
    """Whether the endpoint may be plain HTTP."""
    master_key_file: Path | None = None
    """File of the master key, 32 bytes, on another medium than `data_dir`: artifacts and uploads are encrypted under
    it, those of before too. Made where it is missing and nothing is encrypted yet; None leaves them in the clear."""
    former_master_key_file: Path | None = None
    """File of the master key before, for the one start that changes it."""
    encrypt_mib_per_second: float = 64.0
    """Most that is read in a second of artifacts from before there was a master key, to encrypt them."""
    scrub_seconds: float = 7 * 86_400.0
    """Wait between two rounds in which every stored artifact is read and checked; 0 for none."""
    scrub_mib_per_second: float = 16.0
    """Most that such a round reads in a second."""
    audit_checkpoint_file: str = ""
    """Checkpoints of the audit log are appended here as JSON lines, to be shipped elsewhere; empty for none."""
    trace_file: str = ""
    """Spans are appended here as JSON lines; empty for none."""
    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for spans; empty for none."""
    sample_ratio: float = 0.01
    """Share of calls without a trace context that are recorded."""
