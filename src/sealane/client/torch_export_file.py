"""What a ``.pt2`` file takes and gives, read without torch: the archive holds the program as JSON.

The layout is that of torch 2.8 and later (``torch.export.pt2_archive``, ``torch._export.serde.schema``). Names are
those that the worker gives: parameters of ``forward``, and keys of a returned dictionary or ``output_0`` and so on.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols import framework_types
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import Signature, TensorSpec

MAX_PROGRAM_BYTES = 256 * 1024 * 1024
PROGRAM = "models/model.json"


class _Meta(TypedDict):
    """A tensor in the program (the part used here)."""

    dtype: int
    sizes: list[Mapping[str, object]]


class _Tree(TypedDict):
    """How arguments or results are nested."""

    type: str | None
    context: str | None
    children_spec: list[_Tree]


def read_signature(path: Path) -> Signature:
    """The signature of the program.

    Raises:
        InvalidArgument: not a ``.pt2`` file, or a tensor in it that cannot be served.
        FailedPrecondition: of another version's layout, or with results nested deeper.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(item for item in archive.namelist() if item.endswith(f"/{PROGRAM}"))
            if archive.getinfo(name).file_size > MAX_PROGRAM_BYTES:
                raise ValueError("too large")
            program = json.loads(archive.read(name))["graph_module"]
        return _signature(program)
    except (zipfile.BadZipFile, OSError) as error:
        raise InvalidArgument(
            f"{path.name} is not a program of torch.export; write it with torch.export.save", field="path"
        ) from error
    except (StopIteration, KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise FailedPrecondition(
            f"{path.name} is of a layout whose signature cannot be read here; write it with torch 2.8 or later, or "
            "pass signatures",
            reason="SIGNATURES_NEEDED",
        ) from error


def _signature(program: dict[str, dict[str, list[dict[str, dict[str, dict[str, dict[str, str]]]]]]]) -> Signature:
    tensors = cast(dict[str, _Meta], program["graph"]["tensor_values"])
    described = program["signature"]
    takes = [item["user_input"]["arg"] for item in described["input_specs"] if "user_input" in item]
    gives = [item["user_output"]["arg"] for item in described["output_specs"] if "user_output" in item]
    inputs = [item["as_tensor"]["name"] for item in takes if "as_tensor" in item]
    outputs = [item["as_tensor"]["name"] for item in gives]
    calls = cast(list[dict[str, dict[str, str]]], program["module_call_graph"])
    tree = json.loads(calls[0]["signature"]["out_spec"])[1]
    names = _output_names(tree, len(outputs))
    return Signature(
        tuple(_spec(name, tensors[name]) for name in inputs),
        tuple(_spec(name, tensors[tensor]) for name, tensor in zip(names, outputs, strict=True)),
        DEFAULT_SIGNATURE,
    )


def _output_names(tree: _Tree, count: int) -> list[str]:
    if tree["type"] is None:
        return ["output_0"]
    if any(child["type"] is not None for child in tree["children_spec"]):
        raise ValueError("nested results")
    if tree["type"].endswith("dict"):
        return [str(name) for name in json.loads(tree["context"] or "[]")]
    return [f"output_{place}" for place in range(count)]


def _spec(name: str, meta: _Meta) -> TensorSpec:
    datatype = framework_types.TORCH_EXPORT.get(meta["dtype"])
    if datatype is None:
        raise InvalidArgument(
            f"tensor {name!r} is of a type that no protocol carries; export the model with another type there",
            reason="MODEL_SIGNATURES",
            field="path",
        )
    shape = tuple(size.get("as_int", -1) for size in meta["sizes"])
    return TensorSpec(name, datatype, cast(tuple[int, ...], shape))
