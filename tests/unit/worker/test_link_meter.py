"""Speeds are measured from what has to travel anyway: files, and large payloads on a lane."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from worker_parts import Local

from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.registry.v1 import artifact_service_pb2_grpc
from sealane_worker.artifacts import Artifacts
from sealane_worker.cache import Blob
from sealane_worker.link_meter import LEAST_BYTES, LinkMeter

MIB = 1 << 20


def test_nothing_is_known_before_something_large_has_travelled() -> None:
    meter = LinkMeter()
    meter.came(LEAST_BYTES - 1, 0.001)
    meter.left(MIB, 0.0)
    assert meter.speeds == (0.0, 0.0)


def test_a_large_transfer_counts_more_than_a_small_one() -> None:
    meter = LinkMeter()
    meter.came(MIB, 1.0)
    assert meter.speeds[0] == MIB
    meter.came(MIB, 0.5)
    small = meter.speeds[0]
    assert MIB < small < 1.5 * MIB
    meter.came(64 * MIB, 32.0)
    assert 1.8 * MIB < meter.speeds[0] <= 2 * MIB
    assert meter.speeds[1] == 0.0


class Registry(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Sends and takes a MiB in about a tenth of a second."""

    def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DownloadArtifactResponse]:
        time.sleep(0.5)  # looks for it: that is not the link's fault
        for index in range(5):
            yield pb.DownloadArtifactResponse(offset=index * MIB, data=bytes(MIB))
            time.sleep(0.1)

    def StartUpload(self, request: pb.StartUploadRequest, context: grpc.ServicerContext) -> pb.Upload:
        return pb.Upload(name="projects/p/uploads/u")

    def UploadChunks(self, requests: Iterator[pb.UploadChunksRequest], context: grpc.ServicerContext) -> pb.Upload:
        for _ in requests:
            time.sleep(0.1)
        return pb.Upload()

    def FinishUpload(self, request: pb.FinishUploadRequest, context: grpc.ServicerContext) -> pb.Artifact:
        return pb.Artifact()


def test_files_that_come_and_go_are_measured(local: Local, tmp_path: Path) -> None:
    address = local.serve(artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server, Registry())
    channel = local.dial(address)
    meter = LinkMeter()
    artifacts = Artifacts(lambda: channel, meter=meter)
    digest = hashlib.sha256(bytes(5 * MIB)).hexdigest()
    assert sum(len(part) for part in artifacts.fetcher("p", "grant")(Blob(digest, 5 * MIB))) == 5 * MIB
    down, up = meter.speeds
    assert up == 0.0
    assert down == pytest.approx(10 * MIB, rel=0.5)
    (tmp_path / "result").write_bytes(bytes(4 * MIB))
    artifacts.upload("p", tmp_path / "result", "grant")
    assert meter.speeds == (down, pytest.approx(10 * MIB, rel=0.5))
