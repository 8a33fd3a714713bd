"""Rows of datasets as a model's inputs: shards of ``.npz``, read as they are needed."""

from __future__ import annotations

import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sealane.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec
from sealane_worker.cache import Blob, Cache, Source

#: Shards whose arrays are kept: tasks that follow each other read the same one.
KEPT = 2

Shard = Mapping[str, Array]


class ShardReader:
    """Reads shards; the last ones are kept in memory. One caller at a time, or several: a shard is never changed."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._kept: OrderedDict[str, Shard] = OrderedDict()

    def read(self, item: pb.RowRange, source: Source) -> Shard:
        """The rows of a range, array by name.

        Raises:
            FailedPrecondition: the shard is not what the dataset says.
            SealaneError: what the cache raises.
        """
        arrays = self._shard(item, source)
        # An array of no axis has no rows; it is none of the fields.
        fields = {name: array for name, array in arrays.items() if array.ndim}
        rows = {name: array[item.first_row : item.first_row + item.rows] for name, array in fields.items()}
        if any(len(array) != item.rows for array in rows.values()):
            raise FailedPrecondition(
                f"shard {item.shard.path!r} has not the rows that its dataset says; push it anew", reason="DATASET_ROWS"
            )
        return rows

    def forget(self) -> None:
        """Keep nothing."""
        self._kept.clear()

    def _shard(self, item: pb.RowRange, source: Source) -> Shard:
        digest = item.shard.sha256
        known = self._kept.get(digest)
        if known is None:
            with self._cache.hold_file(Blob(digest, item.shard.size_bytes), source) as path:
                known = read_shard(path)
            self._kept[digest] = known
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return known


def read_shard(path: Path) -> Shard:
    """Arrays of a ``.npz``; nothing in it is unpickled.

    Raises:
        FailedPrecondition: it is none.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("one array by itself")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member that is no array")
        return arrays
    except MemoryError as error:
        raise ResourceExhausted(
            "a shard of the dataset is larger than this worker's memory; make smaller ones"
        ) from error
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise FailedPrecondition(
            "a shard of the dataset is no .npz of arrays; save it with numpy.savez", reason="DATASET_FORMAT"
        ) from error


def inputs_of(signature: Signature, rows: Shard, named: Mapping[str, str], label: str = "") -> dict[str, Array]:
    """Arrays of a shard as the inputs of a model, in its datatypes.

    Args:
        signature: what the model takes.
        rows: arrays by name.
        named: input -> array; empty for the same names, or the only one of each.
        label: array that is no input.

    Raises:
        InvalidArgument: arrays that are missing or do not fit; it says which there are.
    """
    arrays = {name: array for name, array in rows.items() if name != label}
    wanted = {spec.name: spec for spec in signature.inputs}
    if not named and not wanted.keys() <= arrays.keys() and len(wanted) == len(arrays) == 1:
        named = {next(iter(wanted)): next(iter(arrays))}
    found = {}
    for name, spec in wanted.items():
        array = arrays.get(named.get(name, name))
        if array is None:
            raise InvalidArgument(
                f"input {name!r} has no array among {sorted(arrays)}; say which one in 'inputs'",
                reason="INPUTS_UNCLEAR",
            )
        found[name] = _cast(spec, array)
    signature.check_inputs(found)
    return found


def rows_per_run(signature: Signature, wanted: int) -> int:
    """Rows of one run: as wanted, or what the model is fixed to."""
    fixed = {spec.shape[0] for spec in signature.inputs if spec.shape and spec.shape[0] != -1}
    return fixed.pop() if fixed else wanted


def padded(inputs: Mapping[str, Array], first: int, count: int, fixed: bool) -> dict[str, Array]:
    """Rows from `first`, at most `count`; the last one fills up what a model that is `fixed` to `count` lacks."""
    part = {name: array[first : first + count] for name, array in inputs.items()}
    short = count - len(next(iter(part.values())))
    if not fixed or not short:
        return part
    return {name: np.concatenate([array, np.repeat(array[-1:], short, axis=0)]) for name, array in part.items()}


def joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The outputs of runs one after another, rows first."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _cast(spec: TensorSpec, array: Array) -> Array:
    dtype = NUMPY_OF[spec.datatype]
    if array.dtype == dtype or not np.can_cast(array.dtype, dtype, casting="same_kind"):
        return array  # the signature's own check says what is wrong
    return array.astype(dtype)
