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
    audit_checkpoint_file: str = ""
    """Checkpoints of the audit log are appended here as JSON lines, to be shipped elsewhere; empty for none."""
    trace_file: str = ""
    """Spans are appended here as JSON lines; empty for none."""
    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for spans; empty for none."""
    sample_ratio: float = 0.01
    """Share of calls without a trace context that are recorded."""
