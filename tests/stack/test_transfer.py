"""Files up and down through a real registry: cut anywhere, sent twice, side by side, lied about."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from control_plane import ControlPlane

from sealane.client import Client, connect
from sealane.client.artifacts import PARALLEL
from sealane.errors import Aborted, DataLoss, FailedPrecondition, NotFound, SealaneError
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.registry.v1 import artifact_service_pb2_grpc
from sealane.rpc.channel import Target, dial
from sealane.rpc.status import from_rpc_error

BORDER = 64 * 1024
SIZE = 3 * (1 << 20) + 777


@pytest.fixture(scope="module")
def client(control_plane: ControlPlane) -> Iterator[Client]:
    with connect(control_plane.home) as client:
        yield client


class Sender:
    """Sends as it likes."""

    def __init__(self, plane: ControlPlane, client: Client) -> None:
        bundle = (plane.home / "pki" / "ca.pem").read_bytes()
        address = client._session.target("registry").address
        self.channel = dial(Target(address, bundle, "registry.service.sealane"))
        self.metadata = (("authorization", f"Bearer {client.token('sealane-registry')}"),)
        self.stub = artifact_service_pb2_grpc.ArtifactServiceStub(self.channel)

    def start(self, content: bytes, size: int | None = None, sha256: str = "") -> pb.Upload:
        request = pb.StartUploadRequest(
            parent="projects/default",
            sha256=sha256 or hashlib.sha256(content).hexdigest(),
            size_bytes=len(content) if size is None else size,
        )
        return self.stub.StartUpload(request, metadata=self.metadata)

    def send(self, upload: pb.Upload, content: bytes, until: int, *, cut: bool = False, step: int = BORDER) -> None:
        """From the server's offset to `until`; then hang up instead of ending the stream."""
        taken = threading.Event()

        def chunks() -> Iterator[pb.UploadChunksRequest]:
            for offset in range(upload.offset, until, step):
                yield pb.UploadChunksRequest(
                    name=upload.name, offset=offset, data=content[offset : min(offset + step, until)]
                )
            if cut:
                taken.set()
                threading.Event().wait(10)

        if not cut:
            self.stub.UploadChunks(chunks(), metadata=self.metadata)
            return
        call = self.stub.UploadChunks.future(chunks(), metadata=self.metadata)
        assert taken.wait(10)
        call.cancel()

    def finish(self, upload: pb.Upload) -> pb.Artifact:
        return self.stub.FinishUpload(pb.FinishUploadRequest(name=upload.name), metadata=self.metadata)

    def refused(self, call: object, *arguments: object, **options: object) -> SealaneError:
        with pytest.raises(grpc.RpcError) as failure:
            call(*arguments, **options)  # type: ignore[operator]
        return from_rpc_error(failure.value)


@pytest.fixture(scope="module")
def sender(control_plane: ControlPlane, client: Client) -> Iterator[Sender]:
    sender = Sender(control_plane, client)
    yield sender
    sender.channel.close()


def test_an_upload_cut_at_every_border_of_64_kib(sender: Sender, client: Client, tmp_path: Path) -> None:
    noise = os.urandom(SIZE)
    for border in range(0, SIZE, BORDER):
        content = border.to_bytes(8, "big") + noise[8:]
        upload = sender.start(content)
        sender.send(upload, content, border, cut=True)
        assert sender.refused(sender.finish, upload).kind in ("FAILED_PRECONDITION",)
        resumed = sender.start(content)
        assert resumed.name == upload.name and resumed.offset <= border and resumed.offset % BORDER == 0
        for _ in range(50):  # what was on its way when the stream was cut may still come in
            try:
                sender.send(resumed, content, SIZE, step=1 << 20)
                break
            except grpc.RpcError as error:
                assert isinstance(from_rpc_error(error), Aborted)
                resumed = sender.start(content)
        sha256 = sender.finish(resumed).sha256
        assert sha256 == hashlib.sha256(content).hexdigest()
        if border % (16 * BORDER) == 0:
            assert client.artifacts.download(sha256, tmp_path / "back").read_bytes() == content


def test_two_writers_of_one_upload_make_one_file(sender: Sender, client: Client, tmp_path: Path) -> None:
    content = os.urandom(SIZE)

    def write(_: int) -> int:
        """Until it is whole; how often the other was faster."""
        lost = 0
        while True:
            upload = sender.start(content)
            if upload.complete or upload.offset == SIZE:
                return lost
            try:
                sender.send(upload, content, SIZE)
            except grpc.RpcError as error:
                assert isinstance(from_rpc_error(error), Aborted)
                lost += 1

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    sha256 = sender.finish(sender.start(content)).sha256
    assert client.artifacts.download(sha256, tmp_path / "back").read_bytes() == content


def test_what_is_declared_must_be_true(sender: Sender, client: Client, tmp_path: Path) -> None:
    content = os.urandom(1000)
    packed = gzip.compress(content)
    upload = sender.start(content)  # the digest of the content, the bytes of its gzip
    sender.send(upload, packed + bytes(1000), 1000)
    assert sender.refused(sender.finish, upload).reason == "DIGEST_MISMATCH"
    short = sender.start(os.urandom(5), size=1 << 30)
    sender.send(short, b"1", 1)
    refusal = sender.refused(sender.finish, short)
    assert isinstance(refusal, FailedPrecondition) and refusal.reason == "UPLOAD_SHORT"
    long = sender.start(content, size=1)
    assert sender.refused(sender.send, long, content, 1000).reason == "UPLOAD_TOO_LONG"
    with pytest.raises(NotFound):
        client.artifacts.download(hashlib.sha256(content).hexdigest(), tmp_path / "never")


def test_gzip_on_the_wire_changes_nothing(sender: Sender, client: Client, tmp_path: Path) -> None:
    """A compressed stream of messages is unpacked by gRPC; the content is what counts."""
    content = bytes(500_000) + os.urandom(1000)
    upload = sender.start(content)
    request = pb.UploadChunksRequest(name=upload.name, offset=0, data=content)
    sender.stub.UploadChunks(iter([request]), metadata=sender.metadata, compression=grpc.Compression.Gzip)
    sha256 = sender.finish(upload).sha256
    assert client.artifacts.download(sha256, tmp_path / "back").read_bytes() == content


def test_ranges(sender: Sender, client: Client) -> None:
    content = os.urandom(SIZE)
    name = f"projects/default/artifacts/{client.artifacts.upload(content)}"
    for offset, length in ((0, 1), (1, 1 << 20), ((1 << 20) - 1, 2), (SIZE - 1, 5), (SIZE, 0), (123_456, 0)):
        request = pb.DownloadArtifactRequest(name=name, offset=offset, length=length)
        got = b"".join(part.data for part in sender.stub.DownloadArtifact(request, metadata=sender.metadata))
        assert got == content[offset : offset + length if length else None]
    beyond = pb.DownloadArtifactRequest(name=name, offset=SIZE + 1)
    refusal = sender.refused(lambda: list(sender.stub.DownloadArtifact(beyond, metadata=sender.metadata)))
    assert refusal.kind == "INVALID_ARGUMENT"


def test_files_go_side_by_side_and_equal_ones_once(client: Client, tmp_path: Path) -> None:
    files = []
    for index in range(3 * PARALLEL):
        path = tmp_path / f"f{index}"
        path.write_bytes(os.urandom(300_000) if index % 3 else b"the same" * 50_000)
        files.append(path)
    inside, most, lock = 0, 0, threading.Lock()
    threads = set[int]()

    def progress(name: str, done: int, total: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threads.add(threading.get_ident())
        assert lock.acquire(blocking=False), "by one thread at a time"
        lock.release()
        inside -= 1

    digests = client.artifacts.upload_all(files, progress=progress)
    assert digests == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert most == 1 and len(threads) > 1
    wanted = {tmp_path / "out" / path.name: digest for path, digest in zip(files, digests, strict=True)}
    client.artifacts.download_all(wanted)
    assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in files)
    with pytest.raises(NotFound):
        client.artifacts.download_all({tmp_path / "out" / "x": "0" * 64, **wanted})
    assert not list((tmp_path / "out").glob(".*"))


def test_a_flipped_bit_is_told_recorded_and_healed(control_plane: ControlPlane, client: Client, tmp_path: Path) -> None:
    content = os.urandom(SIZE)
    sha256 = client.artifacts.upload(content)
    path = control_plane.home / "registry" / "cas" / "sha256" / sha256[:2] / sha256
    data = bytearray(content)
    data[2_000_000] ^= 16
    path.write_bytes(data)
    with pytest.raises(DataLoss):
        client.artifacts.download(sha256, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    name = f"projects/default/artifacts/{sha256}"
    told = [event.action for event in client.audit.list("registry") if event.resource == name]
    assert sorted(told) == ["FinishUpload", "SetArtifactAside"]
    assert client.artifacts.upload(content) == sha256
    assert client.artifacts.download(sha256, tmp_path / "back").read_bytes() == content
