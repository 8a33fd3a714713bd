"""A relay with a certificate of auth carries streams to a running scheduler: of its own nodes, and of no others."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from sealane.auth.v1 import sealing_key_service_pb2 as sealing_pb
from sealane.auth.v1.sealing_key_service_pb2_grpc import SealingKeyServiceStub
from sealane.client import Client, NodePlace, connect
from sealane.errors import SealaneError
from sealane.registry.v1 import artifact_service_pb2 as artifact_pb
from sealane.registry.v1 import artifact_service_pb2_grpc
from sealane.rpc import channel
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import node_service_pb2 as node_pb
from sealane.scheduler.v1.fleet_service_pb2_grpc import FleetServiceStub
from sealane.security import enroll, suites, tls
from sealane_local import plan
from sealane_local.stack import LocalStack

pytestmark = pytest.mark.stack


@dataclass
class Site:
    """A control plane without workers, and who has joined it."""

    data: Path
    client: Client
    addresses: dict[str, str]
    identities: dict[str, tls.PeerIdentity] = field(default_factory=dict)

    def joined(self, name: str, relay: str | None = None) -> tls.PeerIdentity:
        """A relay, or a node with its relay, that has enrolled."""
        folder = self.data / f"peer-{name}-{len(self.identities)}"
        folder.mkdir()
        place = NodePlace("edge", zone="site-a", clearance="internal", relay=relay or "")
        tokens = self.client.join_tokens
        made = tokens.create(relay=name) if relay is None else tokens.create(node=name, place=place)
        (folder / "token").write_text(made.token)
        trust, auth = self.data / "pki" / "ca.pem", self.addresses["auth"]
        config = enroll.EnrollConfig(folder, auth, self.addresses["auth_mesh"], trust, folder / "token")
        self.identities[name] = enroll.ensure(config)
        return self.identities[name]

    def channel(self, identity: tls.PeerIdentity, service: str) -> grpc.Channel:
        return channel.connect(enroll.mesh_target(identity, service, self.addresses[f"{service}_mesh"]))

    def statement(self, node: str) -> str:
        """What auth says of a node's key, as the node gets it."""
        public = suites.generate(suites.HYBRID).public_key
        request = sealing_pb.PublishSealingKeyRequest(suite="MLKEM768_X25519", public_key=public)
        with self.channel(self.identities[node], "auth") as opened:
            return SealingKeyServiceStub(opened).PublishSealingKey(request, timeout=10).jws

    def state(self, node: str) -> str:
        found = (each for each in self.client.nodes.list() if each.name == f"nodes/{node}")
        return next((node_pb.Node.State.Name(each.state).removeprefix("STATE_") for each in found), "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    data = tmp_path_factory.mktemp("relay") / "stack"
    with LocalStack(plan.Options(data, workers=())), connect(data) as client:
        made = Site(data, client, json.loads((data / "endpoints.json").read_text()))
        for name in ("relay-1", "relay-2"):
            made.joined(name)
        for node, relay in (("n1", "relay-1"), ("n2", "relay-1"), ("n3", "relay-2"), ("n4", "")):
            made.joined(node, relay)
        yield made


@dataclass
class Line:
    """An open stream."""

    up: queue.SimpleQueue[pb.NodeMessage | None]
    down: Iterator[pb.SchedulerMessage]

    def ended(self) -> SealaneError:
        """Read until it ends; why."""
        with pytest.raises(SealaneError) as caught:
            for _ in self.down:
                pass
        return caught.value


@contextmanager
def line(opened: grpc.Channel, statement: str) -> Iterator[Line]:
    up: queue.SimpleQueue[pb.NodeMessage | None] = queue.SimpleQueue()
    up.put(pb.NodeMessage(register=pb.Register(sealing_statement=statement)))
    down = FleetServiceStub(opened).Connect(iter(up.get, None), timeout=60)
    try:
        yield Line(up, down)
    finally:
        up.put(None)
        down.cancel()


def refused(opened: grpc.Channel, statement: str) -> SealaneError:
    with line(opened, statement) as tried:
        return tried.ended()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_relay_carries_its_own_nodes_on_one_connection_and_no_others(site: Site) -> None:
    with site.channel(site.identities["relay-1"], "scheduler") as opened:
        with line(opened, site.statement("n1")) as one, line(opened, site.statement("n2")) as two:
            assert {next(each.down).WhichOneof("message") for each in (one, two)} == {"welcome"}
            assert site.state("n1") == site.state("n2") == "READY"
            for node in ("n3", "n4"):  # another's, and one that names none
                refusal = refused(opened, site.statement(node))
                assert (refusal.kind, refusal.reason) == ("PERMISSION_DENIED", "RELAY_NOT_ALLOWED")
                assert site.state(node) == ""
        eventually(lambda: site.state("n1") != "READY")
    with site.channel(site.identities["n4"], "scheduler") as opened:  # a plain node for another one
        assert refused(opened, site.statement("n1")).kind == "PERMISSION_DENIED"


def test_a_relay_can_do_nothing_else(site: Site) -> None:
    relay = site.identities["relay-1"]
    with site.channel(relay, "auth") as opened, pytest.raises(SealaneError) as caught:
        request = sealing_pb.PublishSealingKeyRequest(suite="X25519", public_key=b"0" * 32)
        SealingKeyServiceStub(opened).PublishSealingKey(request, timeout=10)
    assert (caught.value.kind, caught.value.reason) == ("PERMISSION_DENIED", "CALLER_NOT_ALLOWED")
    with site.channel(relay, "registry") as opened, pytest.raises(SealaneError) as caught:
        stub = artifact_service_pb2_grpc.ArtifactServiceStub(opened)
        list(stub.DownloadArtifact(artifact_pb.DownloadArtifactRequest(name="projects/p/artifacts/a"), timeout=10))
    assert caught.value.kind in ("PERMISSION_DENIED", "UNAUTHENTICATED")
    with site.channel(relay, "scheduler") as opened, pytest.raises(SealaneError) as caught:
        request = pb.FinishTaskRequest(task="projects/default/jobs/j/tasks/1", attempt=1, node="n3")
        FleetServiceStub(opened).FinishTask(request, timeout=10)
    assert (caught.value.kind, caught.value.reason) == ("PERMISSION_DENIED", "RELAY_NOT_ALLOWED")


def test_an_evicted_node_and_an_evicted_relay_are_put_out(site: Site) -> None:
    gone, kept = site.statement("n1"), site.statement("n2")
    with site.channel(site.identities["relay-1"], "scheduler") as opened:
        with line(opened, gone) as one, line(opened, kept) as two:
            assert next(one.down).HasField("welcome") and next(two.down).HasField("welcome")
            site.client.peers.evict("n1", "stolen")
            assert one.ended().kind == "UNAUTHENTICATED"
            eventually(lambda: site.state("n1") == "DEAD")
            assert site.state("n2") == "READY"
            assert refused(opened, gone).reason == "NODE_EVICTED"
            site.client.peers.evict("spiffe://sealane/relay/relay-1", "stolen")
            assert two.ended().kind == "UNAUTHENTICATED"
            eventually(lambda: site.state("n2") == "SUSPECT")
        assert refused(opened, kept).kind == "UNAUTHENTICATED"
    with site.channel(site.identities["n2"], "scheduler") as opened, line(opened, kept) as itself:
        assert next(itself.down).HasField("welcome"), "the node goes on without its relay"
