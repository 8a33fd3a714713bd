"""The gateway as a process: it follows the scheduler's routes, outlives the scheduler, and drains."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from gateway_harness import OIP, TLS_NAME, Authority, wait_for

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.scheduler.v1 import routing_service_pb2 as pb
from sealane.scheduler.v1 import routing_service_pb2_grpc
from sealane.security import tls


class Scheduler(routing_service_pb2_grpc.RoutingServiceServicer):
    """Streams the tables that a test puts in."""

    def __init__(self, identity: tls.PeerIdentity, port: int = 0) -> None:
        self.tables: queue.Queue[pb.RouteTable | None] = queue.Queue()
        self.requests: list[pb.WatchRoutesRequest] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        routing_service_pb2_grpc.add_RoutingServiceServicer_to_server(self, self._server)
        credentials = tls.server_credentials(identity, mesh=True)
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        self._server.start()

    def WatchRoutes(self, request: pb.WatchRoutesRequest, context: grpc.ServicerContext) -> Iterator[pb.RouteTable]:
        self.requests.append(request)
        yield from iter(self.tables.get, None)

    def stop(self) -> None:
        self.tables.put(None)
        self._server.stop(0).wait()


def table(revision: int, *deployments: str) -> pb.RouteTable:
    routes = [
        pb.Route(deployment=f"projects/p/deployments/{name}", model_version="projects/p/models/m/versions/3")
        for name in deployments
    ]
    return pb.RouteTable(revision=revision, routes=[*routes, pb.Route(deployment="malformed")])


@pytest.fixture
def scheduler(tmp_path: Path, authority: Authority) -> Iterator[Scheduler]:
    identity = authority.identity(
        tmp_path / "scheduler", "spiffe://sealane/service/scheduler", "scheduler.service.sealane"
    )
    scheduler = Scheduler(identity)
    yield scheduler
    scheduler.stop()


@pytest.fixture
def process(tmp_path: Path, authority: Authority, scheduler: Scheduler) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "jwks.json").write_text(authority.jwks())
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    authority.identity(tmp_path / "identity", "spiffe://sealane/service/inference", TLS_NAME)
    settings = {
        "DATA_DIR": tmp_path,
        "AUTH": "127.0.0.1:1",
        "AUTH_MESH": "127.0.0.1:1",
        "SCHEDULER_MESH": f"127.0.0.1:{scheduler.port}",
        "TRUST_BUNDLE": tmp_path / "ca.pem",
        "NAME": "gw-1",
    }
    environment = {**os.environ, **{f"SEALANE_INFERENCE_{name}": str(value) for name, value in settings.items()}}
    process = subprocess.Popen([sys.executable, "-m", "sealane_inference"], env=environment)
    yield process
    if process.poll() is None:
        process.kill()
    process.wait(10)


def test_follows_and_outlives_the_scheduler_and_drains(
    tmp_path: Path, authority: Authority, scheduler: Scheduler, process: subprocess.Popen[bytes]
) -> None:
    wait_for((tmp_path / "ports.json").exists, 20)
    ports = json.loads((tmp_path / "ports.json").read_text())
    assert ports["pid"] == process.pid
    wait_for(lambda: bool(scheduler.requests))
    assert (scheduler.requests[0].gateway, scheduler.requests[0].lane_address) == ("gw-1", f"127.0.0.1:{ports['mesh']}")
    channel = grpc.secure_channel(
        f"127.0.0.1:{ports['client']}",
        grpc.ssl_channel_credentials(authority.pem),
        options=[("grpc.ssl_target_name_override", TLS_NAME)],
    )

    def known(name: str) -> bool:
        metadata = [("authorization", f"Bearer {authority.token()}")]
        try:
            answer = channel.unary_unary(OIP + "RepositoryIndex")(b"", metadata=metadata, timeout=5)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            return False
        return name in {entry.name for entry in oip.RepositoryIndexResponse.FromString(answer).models}

    assert not known("a")
    scheduler.tables.put(table(1, "a"))
    wait_for(lambda: known("a"))
    scheduler.tables.put(table(2, "b"))
    wait_for(lambda: known("b") and not known("a"))

    scheduler.stop()
    assert known("b")
    identity = tls.load(tmp_path / "scheduler")
    assert identity is not None
    again = Scheduler(identity, scheduler.port)
    again.tables.put(table(3, "c"))
    wait_for(lambda: known("c"), 10)
    again.stop()

    channel.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert not (tmp_path / "ports.json").exists()


def test_an_unknown_setting_stops_the_start() -> None:
    environment = {**os.environ, "SEALANE_INFERENCE_LISTN": "x"}
    done = subprocess.run(
        [sys.executable, "-m", "sealane_inference"], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "SEALANE_INFERENCE_LISTEN" in done.stderr
