"""Settings of a worker, read once from ``SEALANE_WORKER_*``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREFIX = "SEALANE_WORKER_"


@dataclass(frozen=True, slots=True)
class Config:
    """One worker. Fields are environment variables in upper case behind ``SEALANE_WORKER_``."""

    data_dir: Path
    """Identity, keys of auth, assignments, artifacts; everything that survives a restart."""

    auth: str
    """Client port of auth, ``host:port``, for enrollment."""

    auth_mesh: str
    """Mesh port of auth: certificate renewal, key set, sealing keys."""

    registry_mesh: str
    """Mesh port of the registry: artifacts."""

    scheduler_mesh: str
    """Mesh port of the scheduler: what to serve and to run. Several with commas between them, where one takes over from
    another."""

    trust_bundle: Path
    """Root certificates, PEM."""

    join_token: Path | None = None
    """File with the join token; needed before the first start only."""

    listen: str = "127.0.0.1:0"
    """Where clients call the front."""

    front: str = "auto"
    """What holds that port: ``native``, ``python``, or ``auto``, which is native where it is installed."""

    advertise: str = ""
    """Address that clients are told; empty takes the host of `listen` with the port that was bound."""

    reach: tuple[str, ...] = ()
    """``told=reached`` addresses of gateways, for a site from which they are reached elsewhere than they are told."""

    price_per_hour: float = 0.0
    """What this machine costs, in units of currency per hour."""

    egress_per_gib: float = 0.0
    """What a GiB that leaves this machine costs, in units of currency."""

    watts: float = 0.0
    """What this machine draws while it works beyond what it draws idle; 0 where that is not known."""

    labels: tuple[str, ...] = ()
    """``key=value`` facts that this worker tells of itself."""

    runtimes: tuple[str, ...] = ()
    """Runtimes to offer; empty offers all that are installed."""

    pythons: tuple[str, ...] = ()
    """``runtime=path`` of Python interpreters whose environment has a runtime that this one has not."""

    endpoints: tuple[str, ...] = ()
    """``name=host:port`` of model servers that variants of format REMOTE may name; ``|ca=path`` behind it for TLS."""

    executable: bool = False
    """Whether formats and steps that hold code may be loaded: TorchScript, a variant's own Python."""

    trusted_signers: Path | None = None
    """Folder of public keys, PEM, of which one must have signed every model, whatever the registry says."""

    encrypted_cache: bool = False
    """Whether artifacts lie on the disk encrypted alone, and in the clear only in memory while they are used; the
    registry has to encrypt them (SEALANE_REGISTRY_MASTER_KEY_FILE)."""

    memory_dir: Path = Path("/dev/shm")  # noqa: S108  # a folder for this worker alone is made in it
    """Folder in memory (tmpfs) for the models of an encrypted cache: those that are loaded have to fit."""

    cache_key_file: Path | None = None
    """File with 32 bytes, on a medium that a thief of the disk has not: keys of an encrypted cache are kept under it,
    so that models load while the registry is out of reach. Without it keys are in memory alone."""

    sandbox: str = "none"
    """Lowest sandbox level to run models at: ``none``, ``partial`` or ``full``."""

    memory_mib: int = 0
    """Memory for all models together; the least recently used give way above it. 0 is four fifths of the machine."""

    model_memory_mib: int = 0
    """Most memory of one model process; 0 is the memory for all."""

    parking: bool = True
    """Whether a worker whose calls come one at a time keeps to one processor, which saves waking the others."""

    threads: int = 1
    """Processor threads for one inference where the variant does not say."""

    suite: str = ""
    """Suite of the sealing key: ``MLKEM768_X25519`` or ``X25519``; empty takes the best this build can do."""

    metrics_listen: str = ""
    """Where scrapers find what the models have done, ``host:port`` over HTTPS; empty for nowhere."""

    metrics_token_file: Path | None = None
    """File with the bearer token that scrapers must send; needed where others than this machine reach the address."""

    trace_file: str = ""
    """Spans are appended here as JSON lines; empty for none."""

    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for spans; empty for none."""

    sample_ratio: float = 0.01
    """Share of calls without a trace context that start a recorded trace."""
