"""Two schedulers on one PostgreSQL: one leads, the other takes over, and nothing that is healthy moves."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import postgres
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2
from light_site import CAMERA_A, CAMERA_B, CLOUD, EDGE, Callers, LightSite, eventually, running

from sealane.client import Client, ClientCredentials, connect
from sealane.errors import NOT_LEADER, Unavailable
from sealane_local.child import Child

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]
FIRST, SECOND = "scheduler", "scheduler-2"
PORTS = ("scheduler_client", "scheduler_mesh", "second_client", "second_mesh")
#: From the death of the one that leads to the first answer of the other.
TAKEOVER_SECONDS = 15.0


@dataclass
class Pair:
    """A suite with two schedulers."""

    site: LightSite
    children: dict[str, Child]
    endpoints: dict[str, str]
    """Name of a scheduler to its client port."""
    database: sa.Engine

    def alone(self, name: str) -> Client:
        """A client that knows one scheduler."""
        addresses = self.site.endpoints | {"scheduler": self.endpoints[name]}
        admin = json.loads((self.site.data / "admin.json").read_text())
        credentials = ClientCredentials(admin["client_id"], admin["client_secret"], project=admin["project"])
        return Client(addresses, trust_bundle=self.site.trust, credentials=credentials)

    def health(self, name: str) -> int:
        """What a scheduler says of its health."""
        with grpc.secure_channel(
            self.endpoints[name],
            grpc.ssl_channel_credentials(self.site.trust),
            options=[("grpc.ssl_target_name_override", "scheduler.service.sealane")],
        ) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            return int(check(health_pb2.HealthCheckRequest(), timeout=5).status)

    def leader(self) -> tuple[str, int]:
        """Who leads by the database, and the epoch of the lead."""
        with self.database.connect() as connection:
            address, epoch = connection.execute(sa.text("select address, epoch from leadership")).one()
        return next(name for name, known in self.endpoints.items() if known == address), int(epoch)

    def recorded(self) -> list[tuple[object, ...]]:
        """All that a scheduler writes about deployments and nodes."""
        queries = (
            "select * from placements order by 1, 2, 3",
            "select id from decisions order by 1",
            "select * from epochs",
        )
        with self.database.connect() as connection:
            return [tuple(row) for query in queries for row in connection.execute(sa.text(query))]

    def places(self) -> dict[str, set[tuple[str, int]]]:
        return {camera: self.site.places(camera) for camera in (CAMERA_A, CAMERA_B)}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(item.getsockname()[1]) for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    data = tmp_path_factory.mktemp("takeover")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    (data / "ports.json").write_text(json.dumps(ports))
    where = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    mesh = f"{where['scheduler_mesh']},{where['second_mesh']}"
    with postgres.server() as url:
        settings = {"scheduler": {"DATABASE": url}, "inference": {"SCHEDULER_MESH": mesh}}
        environments = {node: {"SEALANE_WORKER_SCHEDULER_MESH": mesh} for node in (EDGE, CLOUD)}
        with running(data, settings=settings, environments=environments) as site:
            second = second_of(site, where)
            second.start()
            second.wait_serving(60)
            endpoints = site.endpoints | {"scheduler": f"{where['scheduler_client']},{where['second_client']}"}
            (data / "endpoints.json").write_text(json.dumps(endpoints))
            engine = sa.create_engine(url)
            try:
                with connect(data) as client:
                    known = {FIRST: where["scheduler_client"], SECOND: where["second_client"]}
                    children = {FIRST: site.stack.child(FIRST), SECOND: second}
                    both = LightSite(site.stack, client)
                    both.deploy_cameras(both.push())
                    yield Pair(both, children, known, engine)
            finally:
                engine.dispose()
                second.kill()


def second_of(site: LightSite, where: dict[str, str]) -> Child:
    """A second scheduler, as the first one but for its folder and its ports."""
    first, data = site.stack.child(FIRST).command, site.data
    token = data / "join" / "scheduler-2.token"
    token.write_text(site.client.join_tokens.create(service="scheduler", hosts=("localhost", "127.0.0.1")).token)
    settings = {
        "DATA_DIR": str(data / SECOND),
        "LISTEN": where["second_client"],
        "MESH_LISTEN": where["second_mesh"],
        "JOIN_TOKEN": str(token),
        "TRACE_FILE": "",
    }
    environment = first.environment | {f"SEALANE_SCHEDULER_{name}": value for name, value in settings.items()}
    log = Path(data / "logs" / f"{SECOND}.log")
    return Child(replace(first, name=SECOND, environment=environment, log=log, data_dir=data / SECOND))


def serves(pair: Pair, name: str) -> bool:
    return pair.health(name) == health_pb2.HealthCheckResponse.SERVING


def test_who_waits_says_so_and_names_who_leads(pair: Pair) -> None:
    assert pair.leader()[0] == FIRST and serves(pair, FIRST)
    assert pair.health(SECOND) == health_pb2.HealthCheckResponse.NOT_SERVING
    with pair.alone(SECOND) as client, pytest.raises(Unavailable) as refused:
        client.deployments.get(CAMERA_A)
    assert refused.value.reason == NOT_LEADER
    assert refused.value.metadata["leader"] == pair.endpoints[FIRST]
    assert pair.endpoints[FIRST] in refused.value.message


def test_the_other_takes_over_and_nothing_moves(pair: Pair) -> None:
    before, (_, epoch) = pair.places(), pair.leader()
    with Callers(pair.site) as callers:
        eventually(lambda: callers.answers > 20, "there is traffic")
        pair.children[FIRST].kill()
        killed = time.monotonic()
        eventually(lambda: pair.site.client.deployments.get(CAMERA_A).name != "", "somebody answers", 30)
        took = time.monotonic() - killed
        assert pair.leader() == (SECOND, epoch + 1)
        ready = [node.state for node in pair.site.client.nodes.list()]
        eventually(lambda: [node.state for node in pair.site.client.nodes.list()] == [1, 1], f"nodes came: {ready}")
        deployment = pair.site.client.deployments.create("after", "digits@1", tier="cloud")
        pair.site.client.deployments.wait("after", 30)
        assert deployment.name.endswith("/after")
        eventually(lambda: bool(pair.site.client.inference.predict("after", pair.site.image)), "it is answered")
        time.sleep(max(killed + 25.0 - time.monotonic(), 0.0))  # all grace is over
    assert callers.failures == []
    assert pair.places() == before
    print(f"figure: {took:.1f} s from the death of the scheduler that led to the first answer of the other")
    assert took <= TAKEOVER_SECONDS
    pair.site.client.deployments.delete("after")


def test_one_that_was_stopped_writes_nothing_when_it_wakes(pair: Pair) -> None:
    """It holds its connections while it is stopped: workers and gateways leave it by its silence."""
    pair.children[FIRST].start()
    pair.children[FIRST].wait_serving(30)
    eventually(lambda: pair.health(FIRST) == health_pb2.HealthCheckResponse.NOT_SERVING, "it waits")
    before, (leader, epoch) = pair.places(), pair.leader()
    assert leader == SECOND
    stopped = pair.children[SECOND].pid
    assert stopped is not None
    with Callers(pair.site) as callers:
        os.kill(stopped, signal.SIGSTOP)
        try:
            eventually(lambda: pair.leader() == (FIRST, epoch + 1), "the other leads", 30)
            with pair.alone(FIRST) as client:
                eventually(lambda: [node.state for node in client.nodes.list()] == [1, 1], "nodes have come", 30)
                client.deployments.create("meanwhile", "digits@1", tier="cloud")
                client.deployments.wait("meanwhile", 30)
                time.sleep(5.0)
                recorded = pair.recorded()
        finally:
            os.kill(stopped, signal.SIGCONT)
        eventually(lambda: pair.children[SECOND].pid is None, "it has ended")
        time.sleep(1.0)
    assert pair.recorded() == recorded
    assert pair.leader() == (FIRST, epoch + 1)
    assert pair.children[SECOND]._process is not None and pair.children[SECOND]._process.returncode == 1
    assert callers.failures == []
    with pair.alone(FIRST) as client:
        places = {camera: client.deployments.get(camera).placements for camera in before}
        found = {
            name: {(item.node.removeprefix("nodes/"), item.epoch) for item in items} for name, items in places.items()
        }
        assert found == before
        client.deployments.delete("meanwhile")


def test_one_that_is_asked_to_end_is_followed_at_once(pair: Pair) -> None:
    pair.children[SECOND].start()
    pair.children[SECOND].wait_serving(30)
    assert pair.leader()[0] == FIRST
    before = pair.places()
    asked = time.monotonic()
    pair.children[FIRST].stop()
    pair.children[FIRST].join(15)
    eventually(lambda: pair.leader()[0] == SECOND and serves(pair, SECOND), "the other leads")
    print(f"figure: {time.monotonic() - asked:.1f} s from the request to end to the other's lead")
    eventually(lambda: pair.places() == before, "nothing has moved")
    pair.children[FIRST].start()
    pair.children[FIRST].wait_serving(30)
