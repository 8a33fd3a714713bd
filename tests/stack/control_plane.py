"""Auth and registry as real processes on loopback, and a client home that points at them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from sealane.client import connect

_START_SECONDS = 30.0


@dataclass(slots=True)
class Service:
    """One service process; it can be killed and started again on the same data."""

    name: str
    directory: Path
    settings: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, int]:
        """Start and wait until it serves; returns its ports."""
        prefix = f"SEALANE_{self.name.upper()}_"
        environment = {**os.environ, **{prefix + key: value for key, value in self.settings.items()}}
        environment[f"{prefix}DATA_DIR"] = str(self.directory)
        ports = self.directory / "ports.json"
        ports.unlink(missing_ok=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "stderr.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", f"sealane_{self.name}"], env=environment, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not ports.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} did not start:\n{(self.directory / 'stderr.log').read_text()}")
            time.sleep(0.05)
        found: dict[str, int] = json.loads(ports.read_text())
        return found

    def kill(self) -> None:
        """End it without a word, as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """Ask it to drain; returns its exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        return self.process.wait(timeout=15)


@dataclass(slots=True)
class ControlPlane:
    """Auth and registry, and the files that clients read."""

    home: Path
    services: dict[str, Service] = field(default_factory=dict)

    def start(self) -> None:
        """Start both and write the client's files."""
        auth = Service("auth", self.home / "auth", {})
        self.services["auth"] = auth
        ports = auth.start()
        (self.home / "pki").mkdir(exist_ok=True)
        shutil.copy(auth.directory / "pki" / "root.pem", self.home / "pki" / "ca.pem")
        shutil.copy(auth.directory / "admin.json", self.home / "admin.json")
        self.write_endpoints({"auth": ports["client"]})
        with connect(self.home) as client:
            (self.home / "registry.token").write_text(client.join_tokens.create(service="registry").token)
        registry = Service(
            "registry",
            self.home / "registry",
            {
                "AUTH": f"127.0.0.1:{ports['client']}",
                "AUTH_MESH": f"127.0.0.1:{ports['mesh']}",
                "TRUST_BUNDLE": str(self.home / "pki" / "ca.pem"),
                "JOIN_TOKEN": str(self.home / "registry.token"),
            },
        )
        self.services["registry"] = registry
        self.write_endpoints({"auth": ports["client"], "registry": registry.start()["client"]})

    def write_endpoints(self, ports: dict[str, int]) -> None:
        """Write ``endpoints.json``."""
        endpoints = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        (self.home / "endpoints.json").write_text(json.dumps(endpoints))

    def stop(self) -> None:
        """End what runs."""
        for service in reversed(self.services.values()):
            if service.process is not None and service.process.poll() is None:
                service.stop()
