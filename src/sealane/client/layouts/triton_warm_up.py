"""``model_warmup`` of a Triton configuration: requests of zeros, of random numbers, or out of files.

A sample tells one row; Triton asks the model for `batch_size` rows of it, all alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from sealane.client.layouts import folders
from sealane.client.layouts.triton_config import Config
from sealane.client.layouts.triton_fields import Fields
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument
from sealane.protocols import openinference_tensors
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import MAX_TENSOR_BYTES, NUMPY_OF, Array, Signature, byte_size

FOLDER = "warmup"
MAX_REQUESTS = 1000
_SEED = 0
Request = Mapping[str, Array]


def read(
    folder: Path, config: Config, signatures: tuple[Signature, ...]
) -> tuple[tuple[Request, ...], tuple[str, ...]]:
    """The requests, and what does not come over.

    Raises:
        InvalidArgument: a request that the model does not take, or a file that does not fit it.
    """
    if not config.warm_up:
        return (), ()
    if config.filled:
        return (), ("model_warmup: requests of a sequence are not recorded",)
    signature = next((item for item in signatures if item.name == DEFAULT_SIGNATURE), signatures[0])
    random = np.random.default_rng(_SEED)
    made: list[Request] = []
    for sample in config.warm_up:
        name, rows = sample.text("name"), sample.number("batch_size")
        count = max(1, sample.number("count"))
        if len(made) + count > MAX_REQUESTS:
            raise folders.invalid(f"model_warmup asks for more than {MAX_REQUESTS} requests; record fewer")
        for _ in range(count):
            request = {
                key: _array(folder, entry, (max(1, rows),) if config.max_batch_size else (), random)
                for key, entry in sample.entries("inputs").items()
            }
            made.append(_checked(name, request, signature))
    return tuple(made), ()


def _checked(name: str, request: Request, signature: Signature) -> Request:
    try:
        signature.check_inputs(request)
    except InvalidArgument as error:
        raise folders.invalid(f"model_warmup {name!r} is no request that the model takes: {error.message}") from error
    return request


def _array(folder: Path, entry: Fields, rows: tuple[int, ...], random: np.random.Generator) -> Array:
    datatype, dims = entry.datatype("data_type"), tuple(entry.numbers("dims"))
    byte_size(datatype, (*rows, *dims))
    return np.broadcast_to(_row(folder, entry, (datatype, dims), random), (*rows, *dims)).copy()


def _row(folder: Path, entry: Fields, spec: tuple[str, tuple[int, ...]], random: np.random.Generator) -> Array:
    datatype, dims = spec
    if name := entry.text("input_data_file"):
        return _from_file(folders.inside(folder, f"{FOLDER}/{name}", "model_warmup"), datatype, dims)
    dtype = NUMPY_OF[datatype]
    if datatype == "BYTES":
        made = np.empty(math.prod(dims), np.object_)
        made[:] = [b""] * len(made)
        return made.reshape(dims)
    if entry.flag("random_data") and dtype.kind != "V":
        content = random.integers(0, 2, dims) if dtype.kind == "b" else _random(dtype, dims, random)
        return cast(Array, np.asarray(content).astype(dtype))
    return np.frombuffer(bytes(byte_size(datatype, dims)), dtype).reshape(dims)


def _random(dtype: np.dtype[np.generic], shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if dtype.kind == "f":
        return random.random(shape)
    return random.integers(0, np.iinfo(dtype.name).max, shape, dtype.name, endpoint=True)


def _from_file(file: Path, datatype: str, shape: tuple[int, ...]) -> Array:
    """Elements row-major and little endian, byte strings with their length in front, as in raw contents."""
    tensor = oip.ModelInferRequest.InferInputTensor(name=file.name, datatype=datatype, shape=shape)
    if file.stat().st_size > MAX_TENSOR_BYTES:
        raise folders.invalid(f"{file} has more than {MAX_TENSOR_BYTES} bytes; record fewer rows")
    content = file.read_bytes()
    if datatype != "BYTES":
        content = content[: byte_size(datatype, shape)]  # Triton takes a longer file too
    try:
        return openinference_tensors.decode_tensors([tensor], [content], "warm-up", "inputs")[file.name]
    except InvalidArgument as error:
        raise folders.invalid(f"{file} does not fit its shape {list(shape)} of {datatype}: {error.message}") from error
