"""The registry and auth, as real processes, through the SDK and through raw stubs."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from control_plane import ControlPlane

from sealane.cli import main
from sealane.client import Client, ClientCredentials, StaticToken, connect
from sealane.client.model_files import to_proto
from sealane.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SealaneError,
    Unauthenticated,
)
from sealane.registry.v1 import artifact_service_pb2 as artifact_pb
from sealane.registry.v1 import artifact_service_pb2_grpc, model_service_pb2_grpc, variant_service_pb2
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.rpc.channel import Target, dial
from sealane.rpc.status import from_rpc_error
from sealane.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))


@pytest.fixture(scope="module")
def client(control_plane: ControlPlane) -> Iterator[Client]:
    with connect(control_plane.home) as client:
        yield client


class Raw:
    """Generated stubs on a bare channel, with whatever token a test wants."""

    def __init__(self, plane: ControlPlane, token: str) -> None:
        endpoints = json.loads((plane.home / "endpoints.json").read_text())
        bundle = (plane.home / "pki" / "ca.pem").read_bytes()
        self.channel = dial(Target(endpoints["registry"], bundle, "registry.service.sealane"))
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)


@pytest.fixture
def raw(control_plane: ControlPlane, client: Client) -> Iterator[Raw]:
    raw = Raw(control_plane, client.token("sealane-registry"))
    yield raw
    raw.channel.close()


def as_account(plane: ControlPlane, client: Client, *scopes: str) -> Client:
    """A client with an account of these scopes."""
    account = client.accounts.create(f"t{uuid.uuid4().hex[:12]}", scopes)
    return connect(plane.home, credentials=ClientCredentials(account.client_id, account.client_secret))


def error_of(failure: pytest.ExceptionInfo[grpc.RpcError]) -> SealaneError:
    return from_rpc_error(failure.value)


def litert(directory: Path, content: bytes) -> Path:
    path = directory / "model.tflite"
    path.write_bytes(content)
    return path


def chunks(
    upload: artifact_pb.Upload, content: bytes, size: int = 1 << 20
) -> Iterator[artifact_pb.UploadChunksRequest]:
    for offset in range(upload.offset, len(content), size):
        yield artifact_pb.UploadChunksRequest(name=upload.name, offset=offset, data=content[offset : offset + size])


def test_push_pull_round_trip(client: Client, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)  # three chunks
    seen: list[int] = []
    version = client.models.push(
        litert(tmp_path, content),
        "roundtrip",
        signatures=[SIGNATURE],
        alias="production",
        description="a test",
        metrics={"accuracy": 0.9},
        progress=lambda name, done, total: seen.append(done),
    )
    assert version.number == 1 and version.name.endswith("/models/roundtrip/versions/1")
    assert list(version.signatures) == to_proto([SIGNATURE])
    assert version.lineage.metrics["accuracy"] == 0.9
    assert seen[-1] == len(content)

    variant = client.models.pull("roundtrip@production", tmp_path / "out")
    assert (tmp_path / "out" / "model.tflite").read_bytes() == content
    assert variant.size_bytes == len(content) and variant.digest.startswith("sha256:")
    assert not list((tmp_path / "out").glob(".*")), "no partial files stay behind"


def test_second_push_counts_up_and_sends_no_known_bytes(client: Client, tmp_path: Path) -> None:
    path = litert(tmp_path, b"first")
    client.models.push(path, "counting", signatures=[SIGNATURE])
    assert client.models.push(path, "counting", signatures=[SIGNATURE]).number == 2
    assert [version.number for version in client.models.versions("counting")] == [2, 1]
    assert "counting" in [model.name.rpartition("/")[2] for model in client.models.list()]


def test_savedmodel_folder_keeps_its_layout(client: Client, tmp_path: Path) -> None:
    from sealane.compat.tfserving.v1 import tensorflow_pb2 as tf

    model = tf.SavedModel()
    graph = model.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    signature = graph.signature_def["serving_default"]
    for tensors, name in ((signature.inputs, "x"), (signature.outputs, "y")):
        tensors[name].name, tensors[name].dtype = f"{name}:0", tf.DT_FLOAT
        tensors[name].tensor_shape.dim.add(size=-1)
    source = tmp_path / "export"
    (source / "variables").mkdir(parents=True)
    (source / "saved_model.pb").write_bytes(model.SerializeToString())
    (source / "variables" / "variables.index").write_bytes(b"")  # an empty file is a file
    version = client.models.push(source, "folder")
    assert version.signatures[0].inputs[0].name == "x"
    client.models.pull("folder@1", tmp_path / "out", variant="savedmodel")
    assert (tmp_path / "out" / "variables" / "variables.index").read_bytes() == b""
    assert (tmp_path / "out" / "saved_model.pb").read_bytes() == model.SerializeToString()


def test_variants_share_the_signatures_of_the_version(client: Client, tmp_path: Path) -> None:
    client.models.push(litert(tmp_path, b"float"), "forms", signatures=[SIGNATURE])
    variant = client.models.add_variant("forms@1", litert(tmp_path, b"int8"), variant="litert-int8")
    assert variant.precision == variant_service_pb2.PRECISION_INT8
    found = [item.name.rpartition("/")[2] for item in client.models.get_version("forms@1").variants]
    assert found == ["litert-float", "litert-int8"]
    with pytest.raises(AlreadyExists):
        client.models.add_variant("forms@1", litert(tmp_path, b"other"), variant="litert-int8")
    with pytest.raises(NotFound, match="litert-float"):
        client.models.pull("forms@1", tmp_path, variant="onnx")


def test_alias_moves_by_compare_and_set(client: Client, tmp_path: Path) -> None:
    path = litert(tmp_path, b"alias")
    for _ in range(2):
        client.models.push(path, "aliased", signatures=[SIGNATURE])
    first = client.models.move_alias("aliased", "production", 1)
    with pytest.raises(Aborted) as lost:
        client.models.move_alias("aliased", "production", 2, etag="")
    assert lost.value.reason == "ETAG_MISMATCH"
    assert client.models.move_alias("aliased", "production", 2, etag=first.etag).version.endswith("/versions/2")
    assert client.models.get_version("aliased@production").number == 2
    with pytest.raises(NotFound):
        client.models.move_alias("aliased", "production", 9)


def test_cut_upload_goes_on_at_the_servers_offset(raw: Raw, client: Client, tmp_path: Path) -> None:
    content = os.urandom(2_500_000)
    sha256 = hashlib.sha256(content).hexdigest()
    start = artifact_pb.StartUploadRequest(parent="projects/default", sha256=sha256, size_bytes=len(content))
    upload = raw.artifacts.StartUpload(start, metadata=raw.metadata)

    def cut() -> Iterator[artifact_pb.UploadChunksRequest]:
        yield next(chunks(upload, content))
        deadline = time.monotonic() + 10
        while not raw.artifacts.StartUpload(start, metadata=raw.metadata).offset and time.monotonic() < deadline:
            time.sleep(0.02)
        raise ConnectionError("the cable")

    with pytest.raises(grpc.RpcError):
        raw.artifacts.UploadChunks(cut(), metadata=raw.metadata)
    held = raw.artifacts.StartUpload(start, metadata=raw.metadata)
    assert held.name == upload.name and held.offset == 1 << 20
    seen: list[int] = []
    (tmp_path / "file").write_bytes(content)
    assert client.artifacts.upload(tmp_path / "file", progress=lambda name, done, total: seen.append(done)) == sha256
    assert seen[0] == 2 << 20, "the first megabyte is not sent again"
    assert client.artifacts.download(sha256, tmp_path / "back").read_bytes() == content


def test_wrong_offset_names_the_right_one(raw: Raw) -> None:
    content = os.urandom(100)
    start = artifact_pb.StartUploadRequest(
        parent="projects/default", sha256=hashlib.sha256(content).hexdigest(), size_bytes=100
    )
    upload = raw.artifacts.StartUpload(start, metadata=raw.metadata)
    request = artifact_pb.UploadChunksRequest(name=upload.name, offset=50, data=content[50:])
    with pytest.raises(grpc.RpcError) as failure:
        raw.artifacts.UploadChunks(iter([request]), metadata=raw.metadata)
    error = error_of(failure)
    assert isinstance(error, Aborted) and error.metadata["offset"] == "0"


def test_truncated_upload_is_kept_and_can_be_finished(raw: Raw, client: Client, tmp_path: Path) -> None:
    content = os.urandom(2000)
    sha256 = hashlib.sha256(content).hexdigest()
    start = artifact_pb.StartUploadRequest(parent="projects/default", sha256=sha256, size_bytes=len(content))
    upload = raw.artifacts.StartUpload(start, metadata=raw.metadata)
    raw.artifacts.UploadChunks(chunks(upload, content[:700]), metadata=raw.metadata)
    finish = artifact_pb.FinishUploadRequest(name=upload.name)
    with pytest.raises(grpc.RpcError) as failure:
        raw.artifacts.FinishUpload(finish, metadata=raw.metadata)
    error = error_of(failure)
    assert isinstance(error, FailedPrecondition) and "700" in error.message
    with pytest.raises(NotFound):
        client.artifacts.download(sha256, tmp_path / "never")
    rest = raw.artifacts.StartUpload(start, metadata=raw.metadata)
    assert rest.offset == 700
    raw.artifacts.UploadChunks(chunks(rest, content), metadata=raw.metadata)
    assert raw.artifacts.FinishUpload(finish, metadata=raw.metadata).sha256 == sha256


def test_wrong_digest_is_refused_and_nothing_is_stored(raw: Raw) -> None:
    content, claimed = os.urandom(500), hashlib.sha256(os.urandom(8)).hexdigest()
    start = artifact_pb.StartUploadRequest(parent="projects/default", sha256=claimed, size_bytes=500)
    upload = raw.artifacts.StartUpload(start, metadata=raw.metadata)
    raw.artifacts.UploadChunks(chunks(upload, content), metadata=raw.metadata)
    with pytest.raises(grpc.RpcError) as failure:
        raw.artifacts.FinishUpload(artifact_pb.FinishUploadRequest(name=upload.name), metadata=raw.metadata)
    assert error_of(failure).reason == "DIGEST_MISMATCH"
    again = raw.artifacts.StartUpload(start, metadata=raw.metadata)
    assert not again.complete and again.offset == 0


def test_more_bytes_than_declared_are_refused(raw: Raw) -> None:
    content = os.urandom(500)
    start = artifact_pb.StartUploadRequest(
        parent="projects/default", sha256=hashlib.sha256(content).hexdigest(), size_bytes=400
    )
    upload = raw.artifacts.StartUpload(start, metadata=raw.metadata)
    with pytest.raises(grpc.RpcError) as failure:
        raw.artifacts.UploadChunks(chunks(upload, content), metadata=raw.metadata)
    assert isinstance(error_of(failure), InvalidArgument)


def test_request_id_makes_a_push_idempotent(client: Client, tmp_path: Path) -> None:
    path, request_id = litert(tmp_path, b"once"), str(uuid.uuid4())
    first = client.models.push(path, "once", signatures=[SIGNATURE], request_id=request_id)
    again = client.models.push(path, "once", signatures=[SIGNATURE], request_id=request_id)
    assert again == first
    assert len(list(client.models.versions("once"))) == 1
    with pytest.raises(AlreadyExists):
        client.models.push(path, "once", signatures=[SIGNATURE], request_id=request_id, metrics={"other": 1.0})


def test_version_with_a_file_that_is_not_there_is_refused(raw: Raw, client: Client, tmp_path: Path) -> None:
    client.models.push(litert(tmp_path, b"there"), "missing", signatures=[SIGNATURE])
    file = variant_service_pb2.ModelFile(path="a.tflite", sha256=hashlib.sha256(b"not there").hexdigest(), size_bytes=9)
    request = model_pb.CreateVersionRequest(
        parent="projects/default/models/missing",
        version=model_pb.Version(signatures=to_proto([SIGNATURE])),
        variant_id="litert-float",
        variant=variant_service_pb2.Variant(format=variant_service_pb2.FORMAT_LITERT, files=[file]),
        request_id=str(uuid.uuid4()),
    )
    with pytest.raises(grpc.RpcError) as failure:
        raw.models.CreateVersion(request, metadata=raw.metadata)
    assert error_of(failure).reason == "FILE_MISSING"
    assert len(list(client.models.versions("missing"))) == 1, "nothing half done"


def test_path_that_leaves_its_folder_is_refused(raw: Raw, client: Client, tmp_path: Path) -> None:
    client.models.push(litert(tmp_path, b"traverse"), "traverse", signatures=[SIGNATURE])
    digest = hashlib.sha256(b"traverse").hexdigest()
    for path in ("../evil", "/etc/passwd", "a/../../b", "a\\b", ""):
        file = variant_service_pb2.ModelFile(path=path, sha256=digest, size_bytes=8)
        request = model_pb.CreateVersionRequest(
            parent="projects/default/models/traverse",
            version=model_pb.Version(signatures=to_proto([SIGNATURE])),
            variant_id="litert-float",
            variant=variant_service_pb2.Variant(format=variant_service_pb2.FORMAT_LITERT, files=[file]),
            request_id=str(uuid.uuid4()),
        )
        with pytest.raises(grpc.RpcError) as failure:
            raw.models.CreateVersion(request, metadata=raw.metadata)
        assert isinstance(error_of(failure), InvalidArgument), path


def test_foreign_project_is_answered_as_an_absent_one(raw: Raw) -> None:
    calls = [
        lambda: raw.models.GetModel(model_pb.GetModelRequest(name="projects/other/models/m"), metadata=raw.metadata),
        lambda: raw.models.ListModels(model_pb.ListModelsRequest(parent="projects/other"), metadata=raw.metadata),
        lambda: raw.artifacts.StartUpload(
            artifact_pb.StartUploadRequest(parent="projects/other", sha256="0" * 64, size_bytes=1),
            metadata=raw.metadata,
        ),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as failure:
            call()
        assert isinstance(error_of(failure), NotFound)


def test_no_token_and_a_forged_one_are_unauthenticated(control_plane: ControlPlane, client: Client) -> None:
    good = client.token("sealane-registry")
    head, body, signature = good.split(".")
    forged = f"{head}.{body}.{signature[:-4]}AAAA"
    for token in ("", "nonsense", forged, client.token("sealane-auth")):
        raw = Raw(control_plane, token)
        with pytest.raises(grpc.RpcError) as failure:
            raw.models.ListModels(model_pb.ListModelsRequest(parent="projects/default"), metadata=raw.metadata)
        assert isinstance(error_of(failure), Unauthenticated), token[:10]
        raw.channel.close()


def test_scope_decides(control_plane: ControlPlane, client: Client, tmp_path: Path) -> None:
    with as_account(control_plane, client, "models:read") as reader:
        assert reader.project == "default"
        list(reader.models.list())
        with pytest.raises(PermissionDenied):
            reader.artifacts.upload(b"not mine to write")
        with pytest.raises(PermissionDenied):
            reader.accounts.create("more", ["admin"])


def test_wrong_secret_and_unknown_scope(control_plane: ControlPlane, client: Client) -> None:
    wrong = ClientCredentials("admin@default", "wrong")
    with connect(control_plane.home, credentials=wrong) as stranger, pytest.raises(Unauthenticated):
        list(stranger.models.list())
    with pytest.raises(InvalidArgument):
        client.accounts.create("odd", ["models:everything"])


def test_bound_token_is_useless_without_its_key(control_plane: ControlPlane, client: Client) -> None:
    token = client.token("sealane-registry", bound=True)
    stolen = StaticToken(token)  # the thief has another key
    with connect(control_plane.home, credentials=stolen) as thief, pytest.raises(Unauthenticated):
        list(thief.models.list())
    owner = StaticToken(token, key=client._session.tokens.key)
    with connect(control_plane.home, credentials=owner) as same:
        list(same.models.list())


def test_state_survives_kill_in_the_middle_of_an_upload(control_plane: ControlPlane, raw: Raw, tmp_path: Path) -> None:
    content = os.urandom(1_500_000)
    sha256 = hashlib.sha256(content).hexdigest()
    start = artifact_pb.StartUploadRequest(parent="projects/default", sha256=sha256, size_bytes=len(content))
    upload = raw.artifacts.StartUpload(start, metadata=raw.metadata)
    raw.artifacts.UploadChunks(iter([next(chunks(upload, content))]), metadata=raw.metadata)
    with connect(control_plane.home) as before:
        before.models.push(litert(tmp_path, b"survives"), "survivor", signatures=[SIGNATURE], alias="production")
    control_plane.services["registry"].kill()
    ports = control_plane.services["registry"].start()
    endpoints = json.loads((control_plane.home / "endpoints.json").read_text())
    endpoints["registry"] = f"127.0.0.1:{ports['client']}"
    (control_plane.home / "endpoints.json").write_text(json.dumps(endpoints))
    with connect(control_plane.home) as after:
        seen: list[int] = []
        assert after.artifacts.upload(content, progress=lambda name, done, total: seen.append(done)) == sha256
        assert seen == [len(content)], "only the second chunk was sent"
        assert after.models.get_version("survivor@production").number == 1


def test_inputs_that_are_no_file_are_told_so(control_plane: ControlPlane, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(control_plane.home)
    assert main.run(["predict", "camera", "--inputs", "/nonexist", "--data", home]) == 2
    assert "'/nonexist' does not exist" in capsys.readouterr().err
    assert main.run(["predict", "camera", "--inputs", '{"x": [1', "--data", home]) == 2
    assert "nor JSON" in capsys.readouterr().err
