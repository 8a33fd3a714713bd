"""Settings of the gateway, read once from ``SEALANE_INFERENCE_*``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREFIX = "SEALANE_INFERENCE_"


@dataclass(frozen=True, slots=True)
class Config:
    """One gateway. Fields are environment variables in upper case behind ``SEALANE_INFERENCE_``."""

    data_dir: Path
    """Identity and keys of auth; nothing else is kept, a gateway can be replaced at any time."""

    auth: str
    """Client port of auth, ``host:port``, for enrollment."""

    auth_mesh: str
    """Mesh port of auth: certificate renewal, key set."""

    scheduler_mesh: str
    """Mesh port of the scheduler: routes. Several with commas between them, where one takes over from another."""

    trust_bundle: Path
    """Root certificates, PEM."""

    join_token: Path | None = None
    """File with the join token; needed before the first start only."""

    name: str = "inference"
    """Id of this gateway at the scheduler."""

    listen: str = "127.0.0.1:0"
    """Where clients call."""

    mesh_listen: str = "127.0.0.1:0"
    """Where workers open their lanes."""

    http_listen: str = "127.0.0.1:0"
    """Where clients call over HTTPS."""

    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Names and addresses by which clients call `http_listen`; proofs of possession are good for these alone."""

    metrics_listen: str = "127.0.0.1:0"
    """Where Prometheus scrapes, over HTTPS; empty for nowhere."""

    metrics_token_file: Path | None = None
    """File with the bearer token that scrapers send; needed where others than this machine can reach
    `metrics_listen`."""

    advertise_mesh: str = ""
    """Mesh address that workers are told; empty takes the host of `mesh_listen` with the bound port."""

    max_in_flight: int = 1000
    """Calls taken at once; more are refused with RESOURCE_EXHAUSTED."""

    trace_file: str = ""
    """Spans are appended here as JSON lines; empty for none."""

    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for spans; empty for none."""

    sample_ratio: float = 0.01
    """Share of calls without a trace context that start a recorded trace."""
