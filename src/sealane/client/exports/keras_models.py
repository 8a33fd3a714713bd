"""Keras 3 models as SavedModel: functional, sequential, and of classes of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sealane.client.exports import comparison, examples
from sealane.client.exports.refusals import example_refused, not_exportable
from sealane.client.exports.written import Written
from sealane.protocols import framework_types
from sealane.tensors import Array, TensorSpec

if TYPE_CHECKING:
    import keras

_REMEDY = "call it once on data or pass example=, and see that model.export writes it"
_OWN = ("training", "mask")


def export(model: keras.Model, example: object, folder: Path) -> Written:
    """Write the model; see :func:`sealane.client.exports.export`."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise not_exportable(
            f"Keras model on {keras.backend.backend()}",
            None,
            "model.save('model.keras') and push that file, or train with KERAS_BACKEND=tensorflow",
        )
    path = folder / "savedmodel"
    given = None if example is None else examples.read(example)
    if given is not None and not getattr(model, "inputs", None) and isinstance(model, keras.Sequential):
        _call(model, [list(given) if isinstance(given, tuple) else given])  # only now it knows its input
    if getattr(model, "inputs", None):
        return _with_inputs(model, given, path)
    return _subclassed(model, given, path)


def _with_inputs(model: keras.Model, given: examples.Given | None, path: Path) -> Written:
    import keras

    if given is None:
        _write(model, path)
        return Written(path)
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    tensors = keras.tree.flatten(structure)
    names = [tensor.name for tensor in tensors]
    if isinstance(structure, Mapping) and isinstance(given, dict) and set(given) == set(structure):
        given = {tensor.name: given[key] for key, tensor in structure.items()}
    by_name = examples.by_name(given, names)
    inputs = {tensor.name: _converted(by_name[tensor.name], tensor) for tensor in tensors}
    answers = _call(model, [keras.tree.pack_sequence_as(structure, list(inputs.values()))])
    _write(model, path)
    return Written(path, inputs, answers)


def _subclassed(model: keras.Model, given: examples.Given | None, path: Path) -> Written:
    """A model of a class of its own says what it takes only by being called."""
    if given is None:
        _write(model, path)
        return Written(path)
    arguments, names = _arguments(model, given)
    answers = _call(model, arguments)
    _write(
        model, path, input_signature=[_specs(argument, name) for argument, name in zip(arguments, names, strict=True)]
    )
    inputs: dict[str, Array] = {}
    for argument, name in zip(arguments, names, strict=True):
        inputs |= _leaves(argument, name)
    return Written(path, inputs, answers)


_Argument = Array | dict[str, Array] | list[Array]


def _arguments(model: keras.Model, given: examples.Given) -> tuple[list[_Argument], list[str]]:
    """What `call` takes, and the names of its parameters."""
    parameters = [
        item.name
        for item in inspect.signature(model.call).parameters.values()
        if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD) and item.name not in _OWN
    ]
    if not parameters:
        raise example_refused("the model's call takes no inputs by name")
    if isinstance(given, dict):
        if set(given) <= set(parameters):
            names = [name for name in parameters if name in given]
            return [_default_float(given[name]) for name in names], names
        return [{name: _default_float(array) for name, array in given.items()}], parameters[:1]
    if isinstance(given, tuple):
        arrays = [_default_float(array) for array in given]
        if 1 < len(arrays) <= len(parameters):
            return list(arrays), parameters[: len(arrays)]
        return [arrays], parameters[:1]
    return [_default_float(given)], parameters[:1]


def _leaves(argument: _Argument, name: str) -> dict[str, Array]:
    """The arrays of an argument by the names that the exported model has for them."""
    if isinstance(argument, dict):
        return argument
    if isinstance(argument, list):
        return {f"{name}_{place}": array for place, array in enumerate(argument)}
    return {name: argument}


def _specs(argument: _Argument, name: str) -> object:
    import tensorflow as tf

    def spec(array: Array, leaf: str) -> tf.TensorSpec:
        dtype = tf.string if array.dtype.kind == "O" else array.dtype
        # Rows are free, whatever the example has of them.
        return tf.TensorSpec((None, *array.shape[1:]) if array.ndim else (), dtype, name=leaf)

    leaves = {leaf: spec(array, leaf) for leaf, array in _leaves(argument, name).items()}
    if isinstance(argument, dict):
        return leaves
    return list(leaves.values()) if isinstance(argument, list) else leaves[name]


def _call(model: keras.Model, arguments: list[_Argument]) -> dict[str, Array]:
    import keras

    try:
        outputs = model(*arguments, training=False)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise example_refused(f"the model does not take the example ({' '.join(str(error).split())[:200]})") from error
    return comparison.named(keras.tree.map_structure(keras.ops.convert_to_numpy, outputs))


def _write(model: keras.Model, path: Path, **options: object) -> None:
    try:
        model.export(str(path), format="tf_saved_model", verbose=False, **options)
    except (ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise not_exportable("Keras model", error, _REMEDY) from error


def _converted(array: Array, tensor: keras.KerasTensor) -> Array:
    datatype = framework_types.KERAS.get(str(tensor.dtype))
    return array if datatype is None else examples.converted(array, TensorSpec(tensor.name, datatype, ()))


def _default_float(array: Array) -> Array:
    """Python and numpy count in doubles where nobody asks; Keras models do not."""
    import keras

    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array
