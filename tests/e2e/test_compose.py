"""``docker compose up`` for real: healthy, hardened, the SDK call, a crash, a second start.

Skipped where no engine answers. The base image is pulled, or made from Debian packages where it cannot be.
Images stay, as a cache of the next run; containers, networks and volumes go.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sealane.client import Client, connect
from sealane.errors import SealaneError

ROOT = Path(__file__).parents[2]
LIGHT = ROOT / "examples" / "digits" / "light"
LOCAL_BASE, PUBLIC_BASE = "sealane-base:bookworm", "python:3.11-slim-bookworm"
SERVING = ("auth", "registry", "scheduler", "inference", "worker-cloud", "worker-edge")
PORTS = (
    "PORT_AUTH",
    "PORT_AUTH_HTTP",
    "PORT_REGISTRY",
    "PORT_SCHEDULER",
    "PORT_INFERENCE",
    "PORT_INFERENCE_HTTP",
    "PORT_EDGE",
)
HEALTHY_SECONDS = 120.0

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]


def succeeds(*command: str, seconds: float = 30.0) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def compose_command() -> list[str]:
    if not succeeds("docker", "info"):
        pytest.skip("no Docker engine answers")
    for command in (["docker", "compose"], ["docker-compose"]):
        if succeeds(*command, "version"):
            return command
    pytest.skip("neither 'docker compose' nor 'docker-compose' is installed")


def base_image() -> str:
    """The base to build on: a named one, one that is here, the public one, one made from Debian packages."""
    if named := os.environ.get("SEALANE_BASE"):
        return named
    for image in (LOCAL_BASE, PUBLIC_BASE):
        if succeeds("docker", "image", "inspect", image):
            return image
    if succeeds("docker", "pull", "-q", PUBLIC_BASE, seconds=120):
        return PUBLIC_BASE
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip(f"{PUBLIC_BASE} cannot be pulled, and to make a base needs root and debootstrap")
    subprocess.run([str(ROOT / "tools" / "base_image.sh"), LOCAL_BASE], check=True, timeout=400)
    return LOCAL_BASE


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [int(item.getsockname()[1]) for item in sockets]
    for item in sockets:
        item.close()
    return ports


@dataclass(frozen=True)
class Stack:
    command: list[str]
    environment: dict[str, str]
    home: Path

    def compose(self, *arguments: str, seconds: float = 180.0) -> str:
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
        return done.stdout

    def inspect(self, service: str) -> dict[str, dict[str, object]]:
        container = self.compose("ps", "-q", service).strip()
        assert container, f"{service} has no container"
        shown = subprocess.run(["docker", "inspect", container], capture_output=True, check=True, timeout=30)
        facts: dict[str, dict[str, object]] = json.loads(shown.stdout)[0]
        return facts

    def started(self, service: str) -> object:
        return self.inspect(service)["State"]["StartedAt"]

    def wait_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY_SECONDS
        while True:
            health = {name: self.inspect(name)["State"]["Health"]["Status"] for name in SERVING}  # type: ignore[index]
            if set(health.values()) == {"healthy"}:
                return
            if time.monotonic() > deadline:
                pytest.fail(f"not healthy after {HEALTHY_SECONDS:g} s: {health}; {self.compose('logs')[-6000:]}")
            time.sleep(1)

    def up(self) -> None:
        self.compose("up", "-d", "--no-build")
        self.wait_healthy()
        container = self.compose("ps", "-q", "auth").strip()
        subprocess.run(["docker", "cp", f"{container}:/site/.", str(self.home)], check=True, timeout=30)


@pytest.fixture(scope="module")
def ca_bundle() -> Iterator[None]:
    """Hands the build the roots that this machine is told to trust, if it is told any."""
    source, target = os.environ.get("SSL_CERT_FILE"), ROOT / "var" / "ca-bundle.pem"
    if source is None or target.exists():
        yield
        return
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)
    yield
    target.unlink()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, ca_bundle: None) -> Iterator[Stack]:
    command = compose_command()
    environment = {
        **os.environ,
        "COMPOSE_PROJECT_NAME": f"sealane-test-{os.getpid()}",
        "SEALANE_BASE": base_image(),
        "SEALANE_IMAGE": "sealane:test",
        "SEALANE_CLOUD_IMAGE": "sealane-worker-cloud:test",
        **{name: str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)},
    }
    stack = Stack(command, environment, tmp_path_factory.mktemp("site"))
    stack.compose("build", "auth", "worker-cloud", seconds=900)
    try:
        stack.up()
        yield stack
    finally:
        stack.compose("down", "-v", "--remove-orphans", "-t", "10")


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with connect(stack.home) as client:
        yield client


@pytest.fixture(scope="module")
def digits(stack: Stack) -> str:
    """A deployment on the edge worker."""
    with connect(stack.home) as client:
        client.models.push(LIGHT / "litert-int8.tflite", "digits", alias="production")
        client.deployments.create("camera", "digits@production", tier="edge")
        client.deployments.wait("camera", timeout=60)
    return "camera"


def accuracy(client: Client, deployment: str, *, sealed: bool = False, direct: bool = False) -> float:
    data = np.load(LIGHT / "test.npz")
    outputs = client.inference.predict(
        deployment, data["x"][:100], sealed=sealed, via="direct" if direct else "gateway", timeout=20.0
    )
    (scores,) = outputs.values()
    return float(np.mean(np.argmax(scores, axis=1) == data["y"][:100]))


def accuracy_once_back(stack: Stack, deployment: str, seconds: float = 60.0) -> float:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with connect(stack.home) as client:
                return accuracy(client, deployment)
        except SealaneError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.mark.parametrize(("sealed", "direct"), [(False, False), (True, False), (False, True)])
def test_the_same_sdk_call_works(client: Client, digits: str, sealed: bool, direct: bool) -> None:
    assert accuracy(client, digits, sealed=sealed, direct=direct) >= 0.95


def test_both_workers_joined_with_their_tiers(client: Client) -> None:
    nodes = {node.name.removeprefix("nodes/") for node in client.nodes.list() if node.state == 1}
    assert nodes == {"cloud-1", "edge-1"}


@pytest.mark.parametrize("service", SERVING)
def test_containers_are_hardened(stack: Stack, service: str) -> None:
    facts = stack.inspect(service)
    host = facts["HostConfig"]
    assert facts["Config"]["User"] == "10001:10001"
    assert host["ReadonlyRootfs"] is True and host["CapDrop"] == ["ALL"] and not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] and host["PidsLimit"]
    published = [item for bound in (host["PortBindings"] or {}).values() for item in bound]  # type: ignore[attr-defined]
    assert {item["HostIp"] for item in published} <= {"127.0.0.1"}


@pytest.mark.parametrize("service", ["registry", "inference"])
def test_a_join_token_is_seen_by_its_owner_alone(stack: Stack, service: str) -> None:
    listed = stack.compose("exec", "-T", service, "sh", "-c", "stat -c '%a %n' /join/*; ls -d /auth /site/* || true")
    assert listed.split("\n") == ["444 /join/ca.pem", "400 /join/token", ""]


def test_the_observability_file_has_every_service_export_its_spans(stack: Stack) -> None:
    merged = stack.compose("-f", "compose.yaml", "-f", "compose.observability.yaml", "config")
    assert merged.count("_OTLP_ENDPOINT: http://jaeger:4317") == len(SERVING)


@pytest.mark.parametrize("service", ["inference", "scheduler", "registry", "worker-edge", "auth"])
def test_a_killed_container_comes_back_with_its_state(stack: Stack, digits: str, service: str) -> None:
    before = stack.started(service)
    # From inside: 'docker kill' counts as stopped by hand, after which no engine restarts a container.
    container = stack.compose("ps", "-q", service).strip()
    subprocess.run(["docker", "exec", container, "sh", "-c", "kill -9 -1"], capture_output=True, timeout=30)
    deadline = time.monotonic() + 30
    while stack.started(service) == before:
        assert time.monotonic() < deadline, f"{service} was not restarted"
        time.sleep(0.2)
    stack.wait_healthy()
    assert accuracy_once_back(stack, digits) >= 0.95
    with connect(stack.home) as client:
        assert [item.name.rpartition("/")[2] for item in client.deployments.list()] == [digits]


def test_a_second_up_and_a_new_set_of_containers_find_all_state(stack: Stack, digits: str) -> None:
    stack.up()
    assert accuracy_once_back(stack, digits) >= 0.95
    stack.compose("down", "-t", "40")
    stack.up()
    assert accuracy_once_back(stack, digits) >= 0.95
