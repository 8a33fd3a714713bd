"""What runs on one machine: processes, their ports, folders and settings. Pure but for picking free ports."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sealane.client import NodePlace

SERVICES = ("registry", "scheduler", "inference")
_PORTS = {
    "auth": ("client", "mesh", "http"),
    "registry": ("client", "mesh"),
    "scheduler": ("client", "mesh"),
    "inference": ("client", "mesh", "http", "metrics"),
}
#: glibc maps and unmaps memory for every large message as it comes; these keep it (PERFORMANCE 2.1b).
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "67108864",
}
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "TMPDIR", "SEALANE_FAILPOINTS", "SEALANE_LOG_LEVEL")


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One worker.

    Args:
        node: its id.
        tier: ``cloud`` or ``edge``.
        zone: zone, such as ``site-a``.
        clearance: highest data class it may see.
        price_per_hour: what it costs.
        runtimes: runtimes to offer; empty offers all that are installed.
        linked: whether it reaches the rest through a link that can be cut.
        environment: further variables of its process, such as ``SEALANE_WORKER_SANDBOX``.
        region: region of its join token.
    """

    node: str
    tier: str
    zone: str
    clearance: str
    price_per_hour: float
    runtimes: tuple[str, ...] = ()
    linked: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    region: str = "eu"

    @property
    def place(self) -> NodePlace:
        """What its join token says of it."""
        return NodePlace(self.tier, zone=self.zone, region=self.region, pool=self.tier, clearance=self.clearance)


CLOUD = WorkerPlan("cloud-1", "cloud", "eu-1", "internal", 0.20)
EDGE = WorkerPlan("edge-1", "edge", "site-a", "restricted", 0.02, runtimes=("litert",))


@dataclass(frozen=True, slots=True)
class Options:
    """How the stack is to run."""

    data: Path
    workers: tuple[WorkerPlan, ...] = (CLOUD, EDGE)
    project: str = "default"
    sample_ratio: float = 0.01
    otlp_endpoint: str = ""
    edge_lost_after: float = 30.0
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """More of a service's settings: its name, to names and values of its configuration."""


class Ports:
    """Ports of this stack: chosen once, kept in ``DIR/ports.json``, so that a restart changes no address."""

    def __init__(self, options: Options) -> None:
        self._path = options.data / "ports.json"
        self._known: dict[str, int] = json.loads(self._path.read_text()) if self._path.exists() else {}
        wanted = [f"{service}_{name}" for service, names in _PORTS.items() for name in names]
        wanted += [f"worker_{worker.node}" for worker in options.workers]
        linked = [worker.node for worker in options.workers if worker.linked]
        wanted += [f"link_{node}_{port}" for node in linked for port in LINKED]
        missing = [name for name in wanted if name not in self._known]
        self._known.update(zip(missing, _free_ports(len(missing)), strict=True))
        self._path.write_text(json.dumps(self._known))

    def address(self, name: str) -> str:
        """``127.0.0.1:port`` of a name such as ``auth_mesh``."""
        return f"127.0.0.1:{self._known[name]}"


#: Ports that a linked worker reaches through its link.
LINKED = ("auth_client", "auth_mesh", "registry_mesh", "scheduler_mesh", "inference_mesh")


def endpoints(ports: Ports) -> dict[str, str]:
    """``DIR/endpoints.json``: name to address."""
    named = {f"{service}_mesh": ports.address(f"{service}_mesh") for service in _PORTS}
    named |= {service: ports.address(f"{service}_client") for service in _PORTS}
    others = ("auth_http", "inference_http", "inference_metrics")
    return named | {name: ports.address(name) for name in others}


def service_environment(options: Options, ports: Ports, service: str) -> dict[str, str]:
    """Settings of a service's process."""
    prefix, data = f"SEALANE_{service.upper()}_", options.data
    settings = {
        "DATA_DIR": str(data / service),
        "LISTEN": ports.address(f"{service}_client"),
        "MESH_LISTEN": ports.address(f"{service}_mesh"),
        **_telemetry(options, service),
    }
    if service == "auth":
        settings |= {"HTTP_LISTEN": ports.address("auth_http"), "PROJECT": options.project}
    else:
        settings |= {
            "AUTH": ports.address("auth_client"),
            "AUTH_MESH": ports.address("auth_mesh"),
            "TRUST_BUNDLE": str(data / "pki" / "ca.pem"),
            "JOIN_TOKEN": str(join_token_path(options, service)),
        }
    if service == "scheduler":
        settings |= {
            "REGISTRY_MESH": ports.address("registry_mesh"),
            "EDGE_LOST_AFTER": str(options.edge_lost_after),
            # This machine is what there is; `up` says which level its kernel gives.
            "SANDBOX_CLOUD": "none",
            "SANDBOX_EDGE": "none",
        }
    if service == "inference":
        settings |= {
            "SCHEDULER_MESH": ports.address("scheduler_mesh"),
            "HTTP_LISTEN": ports.address("inference_http"),
            "METRICS_LISTEN": ports.address("inference_metrics"),
        }
    settings |= options.settings.get(service, {})
    return _environment({prefix + name: value for name, value in settings.items()})


def worker_environment(options: Options, ports: Ports, worker: WorkerPlan) -> dict[str, str]:
    """Settings of a worker's process."""

    def reached(name: str) -> str:
        return ports.address(f"link_{worker.node}_{name}" if worker.linked else name)

    settings = {
        "DATA_DIR": str(worker_dir(options, worker.node)),
        "AUTH": reached("auth_client"),
        "AUTH_MESH": reached("auth_mesh"),
        "REGISTRY_MESH": reached("registry_mesh"),
        "SCHEDULER_MESH": reached("scheduler_mesh"),
        "TRUST_BUNDLE": str(options.data / "pki" / "ca.pem"),
        "JOIN_TOKEN": str(join_token_path(options, worker.node)),
        "LISTEN": ports.address(f"worker_{worker.node}"),
        "PRICE_PER_HOUR": str(worker.price_per_hour),
        "RUNTIMES": ",".join(worker.runtimes),
        **_telemetry(options, worker.node),
    }
    if worker.linked:
        settings["REACH"] = f"{ports.address('inference_mesh')}={reached('inference_mesh')}"
    named = {"SEALANE_WORKER_" + name: value for name, value in settings.items()}
    return _environment({**named, **worker.environment})


def link_arguments(ports: Ports, worker: WorkerPlan) -> list[str]:
    """Arguments of the link of a worker: ``listen=target`` each."""
    return [f"{ports.address(f'link_{worker.node}_{name}')}={ports.address(name)}" for name in LINKED]


def worker_dir(options: Options, node: str) -> Path:
    """Folder of a worker."""
    return options.data / "workers" / node


def join_token_path(options: Options, subject: str) -> Path:
    """File with the join token of a service or worker."""
    return options.data / "join" / f"{subject}.token"


def _telemetry(options: Options, name: str) -> dict[str, str]:
    return {
        "TRACE_FILE": str(options.data / "traces" / f"{name}.jsonl"),
        "OTLP_ENDPOINT": options.otlp_endpoint,
        "SAMPLE_RATIO": str(options.sample_ratio),
    }


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, **MALLOC, **settings}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()
