"""Uploads and blobs: nothing half done becomes visible, nothing altered goes out."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sealane.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument, SealaneError
from sealane_registry.blobs import CHUNK_BYTES, BlobFolder

CONTENT = os.urandom(3 * CHUNK_BYTES // 2)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    return BlobFolder(tmp_path)


def upload(blobs: BlobFolder, content: bytes = CONTENT, name: str = "u") -> None:
    offset = blobs.open_upload(name)
    while offset < len(content):
        offset = blobs.append(name, offset, content[offset : offset + CHUNK_BYTES], len(content))


def read(blobs: BlobFolder, offset: int = 0, length: int = 0) -> bytes:
    return b"".join(data for _, data in blobs.read(SHA, offset, length))


def test_what_goes_in_comes_out(blobs: BlobFolder) -> None:
    upload(blobs)
    assert not blobs.has(SHA)
    blobs.publish("u", SHA, len(CONTENT))
    assert read(blobs) == CONTENT
    assert read(blobs, 10, 20) == CONTENT[10:30]
    with pytest.raises(Aborted):  # whether it is stored for this project, the records tell
        blobs.publish("u", SHA, len(CONTENT))


def test_a_cut_upload_goes_on_where_the_server_is(blobs: BlobFolder) -> None:
    blobs.open_upload("u")
    assert blobs.append("u", 0, CONTENT[:100], len(CONTENT)) == 100
    with pytest.raises(FailedPrecondition, match="offset 100"):
        blobs.publish("u", SHA, len(CONTENT))
    for wrong in (0, 99, 101):
        with pytest.raises(Aborted) as caught:
            blobs.append("u", wrong, b"x", len(CONTENT))
        assert caught.value.metadata["offset"] == "100"
    assert blobs.open_upload("u") == 100
    blobs.append("u", 100, CONTENT[100:], len(CONTENT))
    blobs.publish("u", SHA, len(CONTENT))
    assert read(blobs) == CONTENT


def test_more_than_declared_and_a_wrong_digest_are_refused(blobs: BlobFolder) -> None:
    blobs.open_upload("u")
    with pytest.raises(InvalidArgument, match="declared"):
        blobs.append("u", 0, b"123", 2)
    blobs.append("u", 0, b"12", 2)
    with pytest.raises(FailedPrecondition, match="digest"):
        blobs.publish("u", SHA, 2)
    assert not blobs.has(SHA)
    assert blobs.open_upload("u") == 0  # dropped: it starts anew


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_blob_never_goes_out_and_can_be_replaced(blobs: BlobFolder, tmp_path: Path, damage: str) -> None:
    upload(blobs)
    blobs.publish("u", SHA, len(CONTENT))
    path = tmp_path / "cas" / "sha256" / SHA[:2] / SHA
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(CONTENT[:-1])
    else:
        path.write_bytes(CONTENT[:5] + bytes([CONTENT[5] ^ 1]) + CONTENT[6:])
    with pytest.raises(DataLoss):
        read(blobs)
    assert not blobs.has(SHA)
    upload(blobs, name="again")
    blobs.publish("again", SHA, len(CONTENT))
    assert read(blobs) == CONTENT


def test_an_unknown_upload_takes_nothing(blobs: BlobFolder) -> None:
    with pytest.raises(SealaneError):
        blobs.append("never-started", 0, b"x", 1)
