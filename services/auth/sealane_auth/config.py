"""Configuration of auth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREFIX = "SEALANE_AUTH_"


@dataclass(frozen=True, slots=True)
class Config:
    """Read from ``SEALANE_AUTH_*``."""

    data_dir: Path
    """Folder for the database, keys, `ports.json` and the first admin credential."""
    listen: str = "127.0.0.1:0"
    """Client port."""
    mesh_listen: str = "127.0.0.1:0"
    """Mesh port."""
    http_listen: str = "127.0.0.1:0"
    """HTTPS port for `/oauth2/token` and `/.well-known/jwks.json`."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Names and addresses for auth's own certificate."""
    project: str = "default"
    """Project of the first admin credential."""
    trace_file: str = ""
    """Spans are appended here as JSON lines; empty for none."""
    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for spans; empty for none."""
    sample_ratio: float = 0.01
    """Share of calls without a trace context that are recorded."""
