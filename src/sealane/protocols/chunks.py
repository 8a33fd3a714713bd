"""Chunks of artifacts on the wire, without the copies that a message class makes of each megabyte.

A copy is a fresh buffer, which the allocator mostly gets from the kernel and gives back: making a chunk a message and
serializing it can take twice as long as hashing it.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc

from sealane.protocols.wire import length_delimited, split
from sealane.registry.v1 import artifact_service_pb2 as pb

_SERVICE = "/" + pb.DESCRIPTOR.services_by_name["ArtifactService"].full_name
_UPLOADED = pb.UploadChunksRequest.DATA_FIELD_NUMBER
_DOWNLOADED = pb.DownloadArtifactResponse.DATA_FIELD_NUMBER


class Chunk(NamedTuple):
    """A piece of an artifact, as :class:`pb.DownloadArtifactResponse` has it.

    Args:
        offset: where it starts.
        data: its bytes, where they lie in the message.
    """

    offset: int
    data: memoryview | bytes


class ChunkStub:
    """What of ArtifactServiceStub carries chunks: it takes :func:`upload_request` and gives :class:`Chunk`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.UploadChunks: grpc.StreamUnaryMultiCallable[bytes, pb.Upload] = channel.stream_unary(
            f"{_SERVICE}/UploadChunks", response_deserializer=pb.Upload.FromString
        )
        self.DownloadArtifact = channel.unary_stream(
            f"{_SERVICE}/DownloadArtifact",
            request_serializer=pb.DownloadArtifactRequest.SerializeToString,
            response_deserializer=read_response,
        )


def upload_request(name: str, offset: int, data: bytes) -> bytes:
    """A serialized UploadChunksRequest."""
    return _with_data(pb.UploadChunksRequest(name=name, offset=offset).SerializeToString(), _UPLOADED, data)


def download_response(offset: int, data: bytes) -> bytes:
    """A serialized DownloadArtifactResponse."""
    return _with_data(pb.DownloadArtifactResponse(offset=offset).SerializeToString(), _DOWNLOADED, data)


def read_response(body: bytes) -> Chunk:
    """What a serialized DownloadArtifactResponse holds.

    Raises:
        ValueError: it is none, or has its data twice.
        DecodeError: the rest of it is malformed.
    """
    rest, found = split(body, _DOWNLOADED, 1)
    return Chunk(pb.DownloadArtifactResponse.FromString(rest).offset, found[0] if found else b"")


def _with_data(rest: bytes, number: int, data: bytes) -> bytes:
    return b"".join((rest, length_delimited(number, len(data)), data))
