"""Shards of datasets as tasks read them: what is none says so, and is not tried again for it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from sealane.errors import FailedPrecondition, ResourceExhausted
from sealane.registry.v1 import dataset_service_pb2 as dataset_pb
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane_worker.cache import Blob, Cache, Source
from sealane_worker.row_data import ShardReader, read_shard


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(name.replace("_", "."), content)
    return path


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def a_text(path: Path) -> None:
    archive(path, readme_txt=b"hello")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def damaged(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((1000, 2)))
    content = bytearray(path.read_bytes())
    content[60:70] = b"\xff" * 10
    path.write_bytes(content)


def objects(path: Path) -> None:
    np.savez(path, x=np.array([{}], dtype=object))


@pytest.mark.parametrize("make", [one_array, a_text, nothing, damaged, objects])
def test_what_is_no_shard_says_so(make: object, tmp_path: Path) -> None:
    path = tmp_path / "shard.npz"
    make(path)  # type: ignore[operator]
    with pytest.raises(FailedPrecondition) as told:
        read_shard(path)
    assert told.value.reason == "DATASET_FORMAT"


def test_one_that_does_not_fit_in_memory_says_so(tmp_path: Path) -> None:
    header = io.BytesIO()
    fields = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(header, fields)  # type: ignore[no-untyped-call]
    with pytest.raises(ResourceExhausted):
        read_shard(archive(tmp_path / "shard.npz", x_npy=header.getvalue()))


class OneFile:
    """A cache of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def hold_file(self, blob: Blob, source: Source) -> Iterator[Path]:
        yield self._path


def test_an_array_without_rows_is_no_field(tmp_path: Path) -> None:
    path = tmp_path / "shard.npz"
    np.savez(path, x=np.arange(6).reshape(3, 2), version=np.array(2))
    reader = ShardReader(cast(Cache, OneFile(path)))
    item = pb.RowRange(shard=dataset_pb.Shard(sha256="ab" * 32), first_row=1, rows=2)
    rows = reader.read(item, cast(Source, None))
    assert {name: array.tolist() for name, array in rows.items()} == {"x": [[2, 3], [4, 5]]}
