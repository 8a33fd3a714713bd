"""Datasets in the registry: immutable manifests of uploaded files."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from sealane.client import references
from sealane.client.artifacts import Artifacts, Progress, no_progress
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.errors import DataLoss, InvalidArgument
from sealane.registry.v1 import dataset_service_pb2 as pb
from sealane.registry.v1 import dataset_service_pb2_grpc
from sealane.tensors import datatype_of


class DatasetOptions(TypedDict, total=False):
    """What may be said about a dataset; everything has a default."""

    description: str
    """What it is."""
    format: str
    """Format of the shards; default: the suffix of the files."""
    schema: Sequence[pb.DatasetField]
    """What a row holds; default: read from ``.npz`` files."""
    labels_in: Sequence[str]
    """Names in the schema that a model is to tell; default: ``y`` and ``label``."""
    rows: Sequence[int]
    """Rows of each shard; default: counted in ``.npz`` and ``.csv`` files."""
    origin: str
    """Where it comes from."""
    license: str
    """Licence, an SPDX expression."""
    labels: Mapping[str, str]
    """Labels."""
    progress: Progress
    """Called with file name, bytes done and bytes in all."""


class Datasets:
    """The datasets of the project."""

    def __init__(self, session: Session, artifacts: Artifacts) -> None:
        self._session = session
        self._artifacts = artifacts

    def push(self, path: Path | str, name: str, **options: Unpack[DatasetOptions]) -> pb.Dataset:
        """Upload a file, or all files of a folder, as an immutable dataset.

        Raises:
            InvalidArgument: there is nothing at `path`, or rows and schema have to be given.
            AlreadyExists: the name is, or was, taken.
        """
        root = Path(path)
        files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
        if not files:
            raise InvalidArgument(f"{root} holds no file; give a file or a folder with files", field="path")
        form = options.get("format") or files[0].suffix.lstrip(".") or "bytes"
        schema, counted = list(options.get("schema", ())), list(options.get("rows", ()))
        if form == "npz":
            schema = schema or _schema_of(files[0], options.get("labels_in", ("y", "label")))
        counted = counted or [_rows_of(file, form) for file in files]
        if len(counted) != len(files):
            raise InvalidArgument(f"there are {len(files)} files and rows of {len(counted)}; give one number for each")
        progress = options.get("progress", no_progress)
        shards = [
            pb.Shard(
                path=file.relative_to(root).as_posix() if root.is_dir() else file.name,
                sha256=self._artifacts.upload(file, progress=progress),
                size_bytes=file.stat().st_size,
                rows=rows,
            )
            for file, rows in zip(files, counted, strict=True)
        ]
        dataset = pb.Dataset(
            description=options.get("description", ""),
            format=form,
            schema=schema,
            shards=shards,
            origin=options.get("origin", ""),
            license=options.get("license", ""),
            labels=options.get("labels", {}),
        )
        request = pb.CreateDatasetRequest(
            parent=self._session.parent, dataset_id=name, dataset=dataset, request_id=str(uuid.uuid4())
        )
        return self._stub().CreateDataset(request, timeout=self._session.timeout)

    def get(self, name: str) -> pb.Dataset:
        """A dataset."""
        request = pb.GetDatasetRequest(name=self._name(name))
        return self._stub().GetDataset(request, timeout=self._session.timeout)

    def list(self, filter_: str = "", order_by: str = "") -> Iterator[pb.Dataset]:
        """The datasets that a filter fits, by name."""

        def fetch(token: str) -> pb.ListDatasetsResponse:
            request = pb.ListDatasetsRequest(
                parent=self._session.parent, page_token=token, filter=filter_, order_by=order_by
            )
            return self._stub().ListDatasets(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.datasets)

    def pull(self, name: str, directory: Path | str, *, progress: Progress = no_progress) -> pb.Dataset:
        """Fetch the files of a dataset into `directory`; every digest is checked."""
        there = self.get(name)
        for shard in there.shards:
            parts = shard.path.split("/")
            if "\\" in shard.path or any(part in ("", ".", "..") for part in parts):
                raise DataLoss(f"the registry names a file {shard.path!r}, which would leave its folder; do not use it")
            self._artifacts.download(shard.sha256, Path(directory, *parts), progress=progress)
        return there

    def delete(self, name: str) -> None:
        """Delete a dataset; its name is never given out again.

        Raises:
            FailedPrecondition: a job uses it (reason DATASET_IN_USE).
        """
        request = pb.DeleteDatasetRequest(name=self._name(name), request_id=str(uuid.uuid4()))
        self._stub().DeleteDataset(request, timeout=self._session.timeout)

    def _name(self, name: str) -> str:
        return references.resource(self._session.project, "datasets", name)

    def _stub(self) -> dataset_service_pb2_grpc.DatasetServiceStub:
        return dataset_service_pb2_grpc.DatasetServiceStub(self._session.channel("registry"))


def _schema_of(file: Path, labels: Sequence[str]) -> list[pb.DatasetField]:
    with _arrays(file) as arrays:
        return [
            pb.DatasetField(
                name=name, datatype=datatype_of(arrays[name]), shape=arrays[name].shape[1:], label=name in labels
            )
            for name in arrays.files
        ]


def _rows_of(file: Path, form: str) -> int:
    if form == "npz":
        with _arrays(file) as arrays:
            lengths = {len(arrays[name]) for name in arrays.files if arrays[name].ndim}
        if len(lengths) != 1:
            raise InvalidArgument(
                f"the arrays of {file.name} have {sorted(lengths)} rows; they must agree", field="path"
            )
        return lengths.pop()
    if form == "csv":
        with file.open("rb") as lines:
            return max(sum(1 for line in lines if line.strip()) - 1, 0)
    raise InvalidArgument(f"rows of {form} files are not counted here; give rows", field="rows")


def _arrays(file: Path) -> np.lib.npyio.NpzFile:
    try:
        return np.load(file, allow_pickle=False)  # type: ignore[no-any-return]  # numpy tells less
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"{file.name} is no .npz file of plain arrays; write it with numpy.savez", field="path"
        ) from error
