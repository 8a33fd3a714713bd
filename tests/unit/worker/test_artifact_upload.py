"""A result goes up whoever else is sending the same file: what is held is not sent again, a lost race is begun anew."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from worker_parts import Local

from sealane.errors import Unavailable
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.registry.v1 import artifact_service_pb2_grpc
from sealane_worker import artifacts
from sealane_worker.artifacts import Artifacts

CONTENT = b"what a task made" * 1000


class Registry(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Holds the first bytes of an upload; loses races as often as it is told to."""

    def __init__(self, held: int = 0, lost: int = 0) -> None:
        self.data, self.lost, self.streams, self.finished = bytearray(CONTENT[:held]), lost, 0, False

    def StartUpload(self, request: pb.StartUploadRequest, context: grpc.ServicerContext) -> pb.Upload:
        return pb.Upload(name="projects/p/uploads/u", offset=len(self.data), complete=self.finished)

    def UploadChunks(self, requests: Iterator[pb.UploadChunksRequest], context: grpc.ServicerContext) -> pb.Upload:
        self.streams += 1
        first = True
        for request in requests:
            first = False
            if self.lost:
                self.lost -= 1
                context.abort(grpc.StatusCode.ABORTED, "another one sends it")
            assert request.offset == len(self.data)
            self.data += request.data
        if first:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the stream held no chunk")
        return pb.Upload(offset=len(self.data))

    def FinishUpload(self, request: pb.FinishUploadRequest, context: grpc.ServicerContext) -> pb.Artifact:
        assert bytes(self.data) == CONTENT
        self.finished = True
        return pb.Artifact()


def upload(local: Local, registry: Registry, tmp_path: Path) -> str:
    address = local.serve(artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server, registry)
    channel = local.dial(address)
    path = tmp_path / "outputs.npz"
    path.write_bytes(CONTENT)
    return Artifacts(lambda: channel).upload("p", path, "grant").digest


@pytest.mark.parametrize(("held", "streams"), [(0, 1), (100, 1), (len(CONTENT), 0)])
def test_what_is_held_is_not_sent_again(local: Local, tmp_path: Path, held: int, streams: int) -> None:
    registry = Registry(held)
    assert upload(local, registry, tmp_path) == hashlib.sha256(CONTENT).hexdigest()
    assert registry.finished and registry.streams == streams


def test_a_lost_race_is_begun_anew(local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "UPLOAD_WAIT_SECONDS", 0.001)
    registry = Registry(lost=3)
    upload(local, registry, tmp_path)
    assert registry.finished and registry.streams == 4
    with pytest.raises(Unavailable) as told:
        upload(local, Registry(lost=99), tmp_path)
    assert told.value.reason == "UPLOAD_CONTENDED"
