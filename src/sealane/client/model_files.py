"""A model on disk: which format it has, which files belong to it, what it takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane.tensors import Signature, TensorSpec, datatype_of
from sealane.type.v1 import tensor_pb2

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

_SAVED_MODEL = "saved_model.pb"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on disk.

    Args:
        format: file format.
        precision: arithmetic.
        variant: id that its variant gets unless another one is asked for.
        files: path inside the variant -> file on disk.
        signatures: what it takes and gives.
    """

    format: pb.Format.ValueType
    precision: pb.Precision.ValueType
    variant: str
    files: Mapping[str, Path]
    signatures: tuple[Signature, ...]


def inspect(path: Path, *, variant: str = "", signatures: Sequence[Signature] = ()) -> LocalModel:
    """Find out what lies at `path`.

    Args:
        path: a SavedModel directory or a ``.tflite`` file.
        variant: id of the variant; default: ``savedmodel``, or ``litert-float`` / ``litert-int8`` by the
            file's name. An id that ends in ``int8`` is int8, any other float32.
        signatures: what a LiteRT model takes and gives; read from the file where this is empty, which
            needs the ``[litert]`` extra.

    Raises:
        InvalidArgument: neither a SavedModel nor a ``.tflite`` file.
        FailedPrecondition: the signatures can only be read with the ``[litert]`` extra.
    """
    if path.is_dir() and (path / _SAVED_MODEL).exists():
        from sealane.protocols import savedmodel

        files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
        found = tuple(signatures) or savedmodel.read_signatures(path)
        return LocalModel(pb.FORMAT_SAVED_MODEL, pb.PRECISION_FLOAT32, variant or "savedmodel", files, found)
    if path.is_file() and path.suffix == ".tflite":
        variant = variant or ("litert-int8" if path.stem.endswith("int8") else "litert-float")
        precision = pb.PRECISION_INT8 if variant.endswith("int8") else pb.PRECISION_FLOAT32
        found = tuple(signatures) or _litert_signatures(path)
        return LocalModel(pb.FORMAT_LITERT, precision, variant, {path.name: path}, found)
    raise InvalidArgument(f"{path} is no model; give a folder with {_SAVED_MODEL} or a .tflite file", field="path")


def to_proto(signatures: Sequence[Signature]) -> list[tensor_pb2.Signature]:
    """Signatures as the contracts carry them."""
    return [
        tensor_pb2.Signature(name=item.name, inputs=_specs_to(item.inputs), outputs=_specs_to(item.outputs))
        for item in signatures
    ]


def from_proto(signatures: Sequence[tensor_pb2.Signature]) -> tuple[Signature, ...]:
    """Signatures out of the contracts."""
    return tuple(Signature(_specs_of(item.inputs), _specs_of(item.outputs), item.name) for item in signatures)


def _specs_to(specs: Sequence[TensorSpec]) -> list[tensor_pb2.TensorSpec]:
    return [tensor_pb2.TensorSpec(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in specs]


def _specs_of(specs: Sequence[tensor_pb2.TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.datatype, tuple(spec.shape)) for spec in specs)


class _Details(TypedDict):
    """The part of an interpreter's tensor details used here."""

    name: str
    dtype: type[np.generic]
    shape: Sequence[int]
    shape_signature: Sequence[int]


def _litert_signatures(path: Path) -> tuple[Signature, ...]:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise FailedPrecondition(
            "reading the signatures of a .tflite file needs LiteRT; pip install 'sealane[litert]' or pass signatures",
            reason="LITERT_MISSING",
        ) from error
    try:
        interpreter: Interpreter = Interpreter(model_path=str(path))
    except (ValueError, RuntimeError) as error:
        raise InvalidArgument(f"{path.name} is not a LiteRT model; convert it again", field="path") from error
    names = list(interpreter.get_signature_list())
    if not names:
        # A model made without signatures is called by its tensors' names, as the worker serves it.
        inputs = {item["name"]: item for item in interpreter.get_input_details()}
        outputs = {item["name"]: item for item in interpreter.get_output_details()}
        return (Signature(_specs(inputs), _specs(outputs), DEFAULT_SIGNATURE),)
    runners = {name: interpreter.get_signature_runner(name) for name in names}
    return tuple(
        Signature(_specs(runner.get_input_details()), _specs(runner.get_output_details()), name)
        for name, runner in runners.items()
    )


def _specs(tensors: Mapping[str, _Details]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, details in tensors.items():
        # A file written before dynamic shapes has an empty shape_signature; its shape is then the truth.
        shape = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
        datatype = datatype_of(np.empty(0, details["dtype"]))
        specs.append(TensorSpec(name, datatype, tuple(int(size) for size in shape)))
    return tuple(specs)
