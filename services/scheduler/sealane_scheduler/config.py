"""Configuration of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREFIX = "SEALANE_SCHEDULER_"


@dataclass(frozen=True, slots=True)
class Config:
    """Read from ``SEALANE_SCHEDULER_*``."""

    data_dir: Path
    """Folder for the database, the certificate and `ports.json`."""
    auth: str
    """Client port of auth, `host:port`."""
    auth_mesh: str
    """Mesh port of auth, `host:port`."""
    trust_bundle: Path
    """File with the root certificates."""
    join_token: Path | None = None
    """File with the join token; needed before the first start."""
    database: str = ""
    """SQLAlchemy URL of a database that several schedulers share, such as ``postgresql+psycopg://...``: one leads, the
    others wait to take over. Empty for an SQLite file in the folder, of which one process makes use."""
    advertise: str = ""
    """Where others reach the client port, `host:port`; who waits names it for who leads. Default: where it listens."""
    advertise_mesh: str = ""
    """The same of the mesh port."""
    registry_mesh: str = "127.0.0.1:0"
    """Mesh port of the registry, `host:port`."""
    edge_lost_after: float = 30.0
    """Seconds of silence after which an edge node is dead and its work is placed anew."""
    cloud_lost_after: float = 5.0
    """The same for cloud nodes."""
    replacement_rate: float = 20.0
    """Copies a second that are placed anew after losses, in the long run; the most urgent deployments first."""
    replacement_burst: int = 100
    """How many of them at once: what one lost worker mostly has."""
    sandbox_cloud: str = "full"
    """Sandbox level that cloud nodes must give models: ``none``, ``partial`` or ``full``."""
    sandbox_edge: str = "partial"
    """The same for edge nodes."""
    task_lease: float = 15.0
    """Seconds after the last renewal at which a task is taken back."""
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
