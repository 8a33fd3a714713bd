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
    audit_checkpoint_file: str = ""
    """Checkpoints of the audit log are appended here as JSON lines, to be shipped elsewhere; empty for none."""
    trace_file: str = ""
    """Spans are appended here as JSON lines; empty for none."""
    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for spans; empty for none."""
    sample_ratio: float = 0.01
    """Share of calls without a trace context that are recorded."""
