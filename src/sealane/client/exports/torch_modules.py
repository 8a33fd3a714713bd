"""A PyTorch module as ONNX, by torch's own exporters."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sealane.client.exports import examples
from sealane.client.exports.onnx_models import MAX_BYTES_INSIDE
from sealane.client.exports.refusals import example_needed, example_refused, missing, not_exportable
from sealane.client.exports.written import Written
from sealane.tensors import Array

if TYPE_CHECKING:
    import torch

_REMEDY = (
    "see that torch.onnx.export(model, args, dynamo=True) writes it with a free first dimension, or push a .pt2 file "
    "of torch.export.save"
)


def export(model: torch.nn.Module, example: object, folder: Path) -> Written:
    """Write the module; see :func:`sealane.client.exports.export`.

    It is exported in evaluation mode and put back into the mode in which it was. Inputs have the names of the
    parameters of ``forward``; outputs are the keys of a returned dict, or ``output_0`` and so on.
    """
    import torch

    if example is None:
        raise example_needed("a PyTorch module")
    if importlib.util.find_spec("onnx") is None:
        raise missing("a PyTorch module", "onnx", "torch-onnx")
    inputs = _inputs(model, example)
    training = model.training
    model.eval()
    try:
        tensors = _tensors(model, inputs)
        with torch.no_grad():
            answers = _answers(_called(model, tensors))
        path = folder / "model.onnx"
        _write(model, _traced(tensors), list(answers), path)
    finally:
        model.train(training)
    return Written(path, inputs, answers)


def _inputs(model: torch.nn.Module, example: object) -> dict[str, Array]:
    """The example by parameter of ``forward``, doubles in the precision of the model."""
    import torch

    given = examples.read(example)
    parameters = [
        item.name
        for item in inspect.signature(model.forward).parameters.values()
        if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
    ]
    if isinstance(given, dict):
        if not set(given) <= set(parameters):
            raise example_refused(f"the example names {sorted(given)}, forward takes {parameters}")
        named = {name: given[name] for name in parameters if name in given}
    else:
        count = len(given) if isinstance(given, tuple) else 1
        named = examples.by_name(given, parameters[:count])
    precision = next((item.dtype for item in model.parameters() if item.is_floating_point()), torch.float32)
    single = precision != torch.float64
    return {
        name: array.astype(np.float32) if single and array.dtype == np.float64 else array
        for name, array in named.items()
    }


def _tensors(model: torch.nn.Module, inputs: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    import torch

    device = next((item.device for item in model.parameters()), torch.device("cpu"))
    try:
        return {name: torch.from_numpy(np.array(array)).to(device) for name, array in inputs.items()}
    except TypeError as error:
        raise example_refused("the example holds what is no tensor of numbers") from error


def _called(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> object:
    try:
        return model(**tensors)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise example_refused(f"the module does not take the example ({' '.join(str(error).split())[:200]})") from error


def _answers(outputs: object) -> dict[str, Array]:
    if isinstance(outputs, Mapping):
        listed = {str(name): tensor for name, tensor in outputs.items()}
    else:
        flat = outputs if isinstance(outputs, Sequence) else (outputs,)
        listed = {f"output_{place}": tensor for place, tensor in enumerate(flat)}
    if not listed or not all(callable(getattr(item, "detach", None)) for item in listed.values()):
        raise not_exportable("PyTorch module", None, "let forward return a tensor, a tuple or a dict of tensors")
    return {name: tensor.detach().cpu().numpy() for name, tensor in listed.items()}


def _traced(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The example with at least two rows: an exporter takes one row for a constant."""
    first = next(iter(tensors.values()))
    if not _batched(first) or first.shape[0] != 1:
        return dict(tensors)
    return {
        name: tensor.expand(2, *tensor.shape[1:]).contiguous() if _batched(tensor) and tensor.shape[0] == 1 else tensor
        for name, tensor in tensors.items()
    }


def _write(model: torch.nn.Module, tensors: dict[str, torch.Tensor], outputs: list[str], path: Path) -> None:
    import torch

    rows = next(iter(tensors.values())).shape[:1]
    free = [name for name, tensor in tensors.items() if _batched(tensor) and tensor.shape[:1] == rows]
    names = {"input_names": list(tensors), "output_names": outputs}
    try:
        if importlib.util.find_spec("onnxscript") is None:
            warnings.warn(
                "onnxscript is not installed, so torch's older exporter is used, which follows one path through the "
                "module and nothing else; pip install 'sealane[torch-onnx]'",
                stacklevel=2,
            )
            axes = {name: {0: "batch"} for name in (*free, *outputs)}
            torch.onnx.export(model, (tensors,), str(path), dynamo=False, dynamic_axes=axes, **names)
            return
        batch = torch.export.Dim("batch")
        shapes = {name: {0: batch} if name in free else None for name in tensors}
        torch.onnx.export(
            model,
            kwargs=tensors,
            f=str(path),
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=_weights(model) > MAX_BYTES_INSIDE,
            verbose=False,
            **names,
        )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise not_exportable("PyTorch module", error.__cause__ or error, _REMEDY) from error


def _batched(tensor: torch.Tensor) -> bool:
    return bool(tensor.ndim)


def _weights(model: torch.nn.Module) -> int:
    return sum(item.numel() * item.element_size() for item in (*model.parameters(), *model.buffers()))
