"""REG-4: the registry killed at every fail point of publish and of its other changes.

No half version, no lost acknowledged one; a retry with the same request id gives the first answer. Once each; 25 times
with LONG=1.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane import ControlPlane
from google.protobuf.message import Message

from sealane.client import Client, connect
from sealane.registry.v1 import artifact_service_pb2 as files_pb
from sealane.registry.v1 import (
    artifact_service_pb2_grpc,
    dataset_service_pb2_grpc,
    model_service_pb2_grpc,
    policy_service_pb2_grpc,
)
from sealane.registry.v1 import dataset_service_pb2 as datasets_pb
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import policy_service_pb2 as policy_pb
from sealane.registry.v1 import variant_service_pb2 as variants_pb
from sealane.rpc.channel import Target, dial

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900 if os.environ.get("LONG") else 120)]
KILLED = 137
ROUNDS = range(25 if os.environ.get("LONG") else 1)
PARENT = "projects/default"
KEPT = b"what was acknowledged before any kill"


@dataclass
class Registry:
    """The registry of a control plane, on data that stays, with a bare channel on which nothing is tried again."""

    plane: ControlPlane
    monkeypatch: pytest.MonkeyPatch

    def start(self, failpoint: str = "") -> None:
        if failpoint:
            self.monkeypatch.setenv("SEALANE_FAILPOINTS", f"{failpoint}=panic")
        else:
            self.monkeypatch.delenv("SEALANE_FAILPOINTS", raising=False)
        self.plane.services["registry"].kill()
        endpoints = json.loads((self.plane.home / "endpoints.json").read_text())
        ports = self.plane.services["registry"].start()
        endpoints["registry"] = f"127.0.0.1:{ports['client']}"
        (self.plane.home / "endpoints.json").write_text(json.dumps(endpoints))
        self._wait_for_revocations()

    def _wait_for_revocations(self) -> None:
        """Until it knows what is revoked, calls of high risk are refused as UNAVAILABLE: that is no kill."""
        with self.client() as client:
            token = client.token("sealane-registry")
        absent = pb.DeleteModelRequest(name=f"{PARENT}/models/absent")
        for _ in range(300):
            with pytest.raises(grpc.RpcError) as answer:
                self.call(MODELS, "DeleteModel", absent, token)
            if answer.value.code() is grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
                return
            time.sleep(0.1)
        raise AssertionError("the registry does not hear of revocations")

    def wait_killed(self) -> None:
        process = self.plane.services["registry"].process
        assert process is not None and process.wait(30) == KILLED

    def client(self) -> Client:
        return connect(self.plane.home)

    def call(self, stub: Callable[[grpc.Channel], Any], method: str, request: Any, token: str) -> Any:
        endpoints = json.loads((self.plane.home / "endpoints.json").read_text())
        bundle = (self.plane.home / "pki" / "ca.pem").read_bytes()
        with dial(Target(endpoints["registry"], bundle, "registry.service.sealane")) as channel:
            metadata = (("authorization", f"Bearer {token}"),)
            answer = getattr(stub(channel), method)(request, timeout=10.0, metadata=metadata)
            return list(answer) if method == "DownloadArtifact" else answer


def upload(content: bytes) -> Callable[[Client], variants_pb.ModelFile]:
    def run(client: Client) -> variants_pb.ModelFile:
        return variants_pb.ModelFile(
            path="model.tflite", sha256=client.artifacts.upload(content), size_bytes=len(content)
        )

    return run


def version(client: Client, content: bytes = b"") -> pb.CreateVersionRequest:
    """A request for the next version of a new model."""
    name = f"m-{uuid.uuid4().hex[:8]}"
    file = upload(content or os.urandom(100))(client)
    request = pb.CreateModelRequest(parent=PARENT, model_id=name)
    model_service_pb2_grpc.ModelServiceStub(client._session.channel("registry")).CreateModel(request)
    return pb.CreateVersionRequest(
        parent=f"{PARENT}/models/{name}",
        version=pb.Version(signatures=[{"name": "serving_default"}]),
        variant_id="litert",
        variant=variants_pb.Variant(format=variants_pb.FORMAT_LITERT, files=[file]),
        request_id=str(uuid.uuid4()),
    )


def pushed(client: Client) -> str:
    """The name of a version that is there."""
    stub = model_service_pb2_grpc.ModelServiceStub(client._session.channel("registry"))
    return stub.CreateVersion(version(client)).name


@dataclass(frozen=True)
class Change:
    """One change: a request for something new, how it is asked for, and how many of it there are."""

    make: Callable[[Client], Message]
    service: Callable[[grpc.Channel], Any]
    count: Callable[[Client, Any], object]
    points: tuple[str, ...] = ("recorded", "committed")


MODELS = model_service_pb2_grpc.ModelServiceStub


def model_of(name: str) -> str:
    return name.split("/versions/")[0].split("/aliases/")[0]


def versions_of(client: Client, request: Any) -> object:
    return [(item.name, [variant.name for variant in item.variants]) for item in client.models.versions(request.parent)]


def alias_of(client: Client, request: Any) -> object:
    model, alias = request.name.split("/aliases/")
    there = [(item.name, item.version, item.move_count) for item in client.models.aliases(model)]
    assert client.models.verify_history(model, alias) == len(list(client.models.history(model, alias)))
    return there, len(list(client.models.history(model, alias)))


def named(client: Client, request: Any) -> object:
    return sorted(item.name for item in client.models.list() if item.name == f"{PARENT}/models/{request.model_id}")


CHANGES: dict[str, Change] = {
    "CreateModel": Change(
        lambda _: pb.CreateModelRequest(
            parent=PARENT, model_id=f"m-{uuid.uuid4().hex[:8]}", request_id=str(uuid.uuid4())
        ),
        MODELS,
        named,
    ),
    # A version with its first variant is one change: killed between the two, nothing of either is there.
    "CreateVersion": Change(version, MODELS, versions_of, ("recorded", "committed", "CreateVariant.recorded")),
    "MoveAlias": Change(
        lambda client: pb.MoveAliasRequest(
            name=f"{model_of(name := pushed(client))}/aliases/production", version=name, request_id=str(uuid.uuid4())
        ),
        MODELS,
        alias_of,
    ),
    "DeleteAlias": Change(
        lambda client: pb.DeleteAliasRequest(
            name=(alias := client.models.move_alias(model_of(name := pushed(client)), "canary", name)).name,
            etag=alias.etag,
            request_id=str(uuid.uuid4()),
        ),
        MODELS,
        alias_of,
    ),
    "UpdateModel": Change(
        lambda client: pb.UpdateModelRequest(
            name=model_of(pushed(client)), model=pb.Model(labels={"a": "b"}), request_id=str(uuid.uuid4())
        ),
        MODELS,
        lambda client, request: dict(client.models.get(request.name).labels),
    ),
    "DeleteModel": Change(
        lambda client: pb.DeleteModelRequest(name=model_of(pushed(client)), request_id=str(uuid.uuid4())),
        MODELS,
        lambda client, request: [item.name for item in client.models.list() if item.name == request.name],
    ),
    "DeprecateVersion": Change(
        lambda client: pb.DeprecateVersionRequest(name=pushed(client), reason="old", request_id=str(uuid.uuid4())),
        MODELS,
        lambda client, request: client.models.get_version(request.name).state,
    ),
    "CreateDataset": Change(
        lambda client: datasets_pb.CreateDatasetRequest(
            parent=PARENT,
            dataset_id=f"d-{uuid.uuid4().hex[:8]}",
            dataset=datasets_pb.Dataset(
                format="npz",
                shards=[{"path": "a", "sha256": client.artifacts.upload(b"rows"), "size_bytes": 4, "rows": 1}],
            ),
            request_id=str(uuid.uuid4()),
        ),
        dataset_service_pb2_grpc.DatasetServiceStub,
        lambda client, request: [i.name for i in client.datasets.list() if i.name.endswith(request.dataset_id)],
    ),
    "UpdatePolicy": Change(
        lambda client: policy_pb.UpdatePolicyRequest(
            name=f"{PARENT}/policy",
            policy=policy_pb.Policy(gates=[{"aliases": [f"g-{uuid.uuid4().hex[:6]}"], "lineage": True}]),
            request_id=str(uuid.uuid4()),
        ),
        policy_service_pb2_grpc.PolicyServiceStub,
        lambda client, _: client.policies.get().gates[0].aliases[0] if client.policies.get().gates else "",
    ),
}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path_factory.mktemp("plane"))
    try:
        plane.start()
        with connect(plane.home) as client:
            path = tmp_path_factory.mktemp("kept") / "model.tflite"
            path.write_bytes(KEPT)
            from sealane.tensors import Signature, TensorSpec

            signature = Signature((TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),))
            client.models.push(path, "kept", signatures=[signature], alias="production")
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def registry(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    made = Registry(plane, monkeypatch)
    yield made
    made.start()


def check_kept(client: Client, folder: Path) -> None:
    """What was acknowledged before any kill."""
    alias = client.models.get_alias("kept", "production")
    assert alias.version.endswith("/versions/1")
    client.models.pull("kept@production", folder)
    assert (folder / "model.tflite").read_bytes() == KEPT
    found = client.audit.verify("registry")
    assert not found.HasField("fault"), found


@pytest.mark.parametrize("round_", ROUNDS)
@pytest.mark.parametrize(
    ("action", "point"), [(action, point) for action, change in CHANGES.items() for point in change.points]
)
def test_a_kill_leaves_a_change_whole_or_unmade(
    registry: Registry, action: str, point: str, round_: int, tmp_path: Path
) -> None:
    change = CHANGES[action]
    registry.start()
    with registry.client() as client:
        request, token = change.make(client), client.token("sealane-registry")
        before = change.count(client, request)
    registry.start(point if "." in point else f"{action}.{point}")
    with pytest.raises(grpc.RpcError) as caught:
        registry.call(change.service, action, request, token)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    registry.wait_killed()
    registry.start()
    with registry.client() as client:
        after = change.count(client, request)
        assert (after == before) is (point != "committed")
        check_kept(client, tmp_path)
        first = registry.call(change.service, action, request, token)
        made = change.count(client, request)
        assert made != before and (made == after or point != "committed")
        assert registry.call(change.service, action, request, token) == first, "a retry gets the first answer"
        assert change.count(client, request) == made


UPLOAD_POINTS = ["registry.before_publish", "FinishUpload.recorded", "FinishUpload.committed"]


@pytest.mark.parametrize("round_", ROUNDS)
@pytest.mark.parametrize("point", UPLOAD_POINTS)
def test_a_kill_while_an_upload_ends(registry: Registry, point: str, round_: int, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    sha256 = hashlib.sha256(content).hexdigest()
    stub = artifact_service_pb2_grpc.ArtifactServiceStub
    registry.start(point)
    with registry.client() as client:
        token = client.token("sealane-registry")
    start = files_pb.StartUploadRequest(parent=PARENT, sha256=sha256, size_bytes=len(content))
    held = registry.call(stub, "StartUpload", start, token)
    chunks = [
        files_pb.UploadChunksRequest(name=held.name, offset=offset, data=content[offset : offset + (1 << 20)])
        for offset in range(0, len(content), 1 << 20)
    ]
    assert registry.call(stub, "UploadChunks", iter(chunks), token).offset == len(content)
    with pytest.raises(grpc.RpcError):
        registry.call(stub, "FinishUpload", files_pb.FinishUploadRequest(name=held.name), token)
    registry.wait_killed()
    registry.start()
    with registry.client() as client:
        artifact = f"{PARENT}/artifacts/{sha256}"
        if point != "FinishUpload.committed":
            with pytest.raises(grpc.RpcError) as absent:
                registry.call(stub, "DownloadArtifact", files_pb.DownloadArtifactRequest(name=artifact), token)
            assert absent.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        assert client.artifacts.upload(content) == sha256
        client.artifacts.download(sha256, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content
        check_kept(client, tmp_path / "kept")
