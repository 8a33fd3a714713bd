"""Chunks of artifacts on the wire, without the copies that a message class makes of each megabyte.

A copy is a fresh buffer, which the allocator mostly gets from the kernel and gives back: making a chunk a message and
serializing it can take twice as long as hashing it.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError

from sealane.errors import InvalidArgument
from sealane.protocols.wire import length_delimited, split
from sealane.registry.v1 import artifact_service_pb2 as pb

_SERVICE = "/" + pb.DESCRIPTOR.services_by_name["ArtifactService"].full_name
_UPLOADED = pb.UploadChunksRequest.DATA_FIELD_NUMBER
_DOWNLOADED = pb.DownloadArtifactResponse.DATA_FIELD_NUMBER


#: Bytes of a chunk, mostly where they lie in their message.
Data = bytes | memoryview


class Chunk(NamedTuple):
    """A piece of an artifact.

    Args:
        offset: where it starts.
        data: its bytes.
        name: of the upload; empty in a download.
    """

    offset: int
    data: Data
    name: str = ""


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


def upload_request(name: str, offset: int, data: Data) -> bytes:
    """A serialized UploadChunksRequest."""
    return _with_data(pb.UploadChunksRequest(name=name, offset=offset).SerializeToString(), _UPLOADED, data)


def download_response(offset: int, data: Data) -> bytes:
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


def read_request(body: bytes) -> Chunk:
    """What a serialized UploadChunksRequest holds.

    Raises:
        InvalidArgument: it is none, or has its data twice.
    """
    try:
        rest, found = split(body, _UPLOADED, 1)
        request = pb.UploadChunksRequest.FromString(rest)
    except (ValueError, DecodeError) as error:
        raise InvalidArgument("malformed request; send an UploadChunksRequest", reason="MALFORMED") from error
    return Chunk(request.offset, found[0] if found else b"", request.name)


def _with_data(rest: bytes, number: int, data: Data) -> bytes:
    return b"".join((rest, length_delimited(number, len(data)), data))
