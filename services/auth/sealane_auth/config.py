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
    key_file: Path | None = None
    """File with the 32 bytes under which all keys are encrypted at rest; made at the first start. Keep it on another
    medium than the data. Unset: ``auth.key`` beside the data folder."""
    federation_ca: Path | None = None
    """Root certificates for external issuers; unset uses the system's."""
    federation_private: bool = False
    """Whether external issuers may lie at private and loopback addresses."""
    audit_checkpoint_file: Path | None = None
    """Signed checkpoints of the audit log are appended here as JSON lines, to be shipped elsewhere."""
    token_seconds: int = 300
    """Life of an access token."""
    key_cache_seconds: int = 300
    """How long verifiers may keep the key set before they ask again."""
    signing_key_days: float = 30.0
    """From one signing key to the next."""
    leaf_seconds: int = 86_400
    """Life of the certificates of services, nodes and accounts; they are renewed at two thirds."""
    intermediate_days: float = 90.0
    """Life of the certificate that signs them."""
    project: str = "default"
    """Project of the first admin credential."""
    trace_file: str = ""
    """Spans are appended here as JSON lines; empty for none."""
    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for spans; empty for none."""
    sample_ratio: float = 0.01
    """Share of calls without a trace context that are recorded."""
