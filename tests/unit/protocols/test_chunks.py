"""Chunks written and read by hand are what the message classes write and read."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from sealane.errors import InvalidArgument
from sealane.protocols.chunks import Chunk, download_response, read_request, read_response, upload_request
from sealane.registry.v1 import artifact_service_pb2 as pb

OFFSETS = st.sampled_from([0, 1, 127, 128, 1 << 20, 64 << 30])
DATA = st.one_of(st.binary(max_size=300), st.sampled_from([bytes(127), bytes(128), bytes(1 << 20)]))


@given(st.text(max_size=80), OFFSETS, DATA)
def test_the_server_reads_what_is_uploaded(name: str, offset: int, data: bytes) -> None:
    wanted = pb.UploadChunksRequest(name=name, offset=offset, data=data)
    assert pb.UploadChunksRequest.FromString(upload_request(name, offset, data)) == wanted
    assert read_request(wanted.SerializeToString()) == Chunk(offset, data, name)


@given(OFFSETS, DATA)
def test_any_client_reads_what_is_downloaded(offset: int, data: bytes) -> None:
    wanted = pb.DownloadArtifactResponse(offset=offset, data=data)
    assert pb.DownloadArtifactResponse.FromString(download_response(offset, data)) == wanted


@given(OFFSETS, DATA)
def test_what_a_message_class_wrote_is_read(offset: int, data: bytes) -> None:
    chunk = read_response(pb.DownloadArtifactResponse(offset=offset, data=data).SerializeToString())
    assert (chunk.offset, bytes(chunk.data)) == (offset, data)


def test_fields_in_another_order_and_unknown_ones_are_read() -> None:
    data = pb.DownloadArtifactResponse(data=b"weights").SerializeToString()
    offset = pb.DownloadArtifactResponse(offset=300).SerializeToString()
    unknown = pb.UploadChunksRequest(data=b"in a field that the answer has not").SerializeToString()
    assert read_response(data + unknown + offset) == Chunk(300, b"weights")


@pytest.mark.parametrize("cut", [1, 2, 4, 5, 6, 11])  # 3 lies between two fields
def test_a_message_that_was_cut_is_refused(cut: int) -> None:
    whole = download_response(300, b"weights")
    with pytest.raises((ValueError, DecodeError)):
        read_response(whole[:cut])


@pytest.mark.parametrize(
    "body",
    [b"no message at all", upload_request("u", 1, b"weights")[:-1], upload_request("u", 1, b"a") * 2, b"\n\x01\xff"],
    ids=["noise", "cut", "two contents", "a name that is no text"],
)
def test_what_is_no_chunk_is_malformed(body: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        read_request(body)
    assert refused.value.reason == "MALFORMED"
