"""A ``tf.Module``, or anything else that TensorFlow writes as a SavedModel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sealane.client.exports import comparison, examples
from sealane.client.exports.refusals import example_needed, example_refused, not_exportable
from sealane.client.exports.written import Written
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.protocols.tfserving_tensors import DATATYPE_OF_DT
from sealane.tensors import Array, TensorSpec

if TYPE_CHECKING:
    import tensorflow as tf

_REMEDY = "see that tf.saved_model.save writes it with a signature"


def export(model: tf.Module, example: object, folder: Path) -> Written:
    """Write the object; see :func:`sealane.client.exports.export`.

    Its ``signatures`` are kept where it has any (a loaded SavedModel); else its ``__call__`` becomes the default one.
    """
    import tensorflow as tf

    path = folder / "savedmodel"
    kept = dict(getattr(model, "signatures", None) or {})
    given = None if example is None else examples.read(example)
    try:
        signatures = kept or {DEFAULT_SIGNATURE: _traced(model, given)}
        tf.saved_model.save(model, str(path), signatures=signatures)
    except (ValueError, TypeError, AttributeError, NotImplementedError, AssertionError) as error:
        raise not_exportable("TensorFlow object", error, _REMEDY) from error
    function = signatures.get(DEFAULT_SIGNATURE)
    if given is None or function is None:
        return Written(path)
    inputs = _inputs(function, given)
    answers = function(**{name: tf.constant(array) for name, array in inputs.items()})
    return Written(
        path, inputs, comparison.named(answers if kept else tf.nest.map_structure(lambda t: t.numpy(), answers))
    )


def _traced(model: tf.Module, given: examples.Given | None) -> tf.types.experimental.ConcreteFunction:
    import tensorflow as tf

    called = getattr(model, "__call__", None)  # noqa: B004  # the function itself is wanted, not whether there is one
    if called is None:
        raise not_exportable("TensorFlow object", None, "give it a __call__, or signatures of its own")
    function = called if hasattr(called, "get_concrete_function") else tf.function(called)
    if getattr(function, "input_signature", None) is not None:
        return function.get_concrete_function()
    if given is None:
        raise example_needed("a tf.Module whose __call__ has no input_signature")
    if isinstance(given, dict):
        return function.get_concrete_function(**{name: _spec(array, name) for name, array in given.items()})
    arrays = given if isinstance(given, tuple) else (given,)
    return function.get_concrete_function(*(_spec(array, None) for array in arrays))


def _spec(array: Array, name: str | None) -> tf.TensorSpec:
    import tensorflow as tf

    dtype = tf.string if array.dtype.kind == "O" else array.dtype
    return tf.TensorSpec((None, *array.shape[1:]) if array.ndim else (), dtype, name=name)


def _inputs(function: tf.types.experimental.ConcreteFunction, given: examples.Given) -> dict[str, Array]:
    """The example by the names of the signature's inputs, in the order in which the function takes them."""
    positional, keyword = function.structured_input_signature
    taken = {spec.name: spec for spec in (*positional, *keyword.values())}
    named = examples.by_name(given, list(taken))
    inputs = {}
    for name, array in named.items():
        datatype = DATATYPE_OF_DT.get(taken[name].dtype.as_datatype_enum)
        if datatype is None:
            raise example_refused(f"input {name!r} is of a type that no protocol carries")
        inputs[name] = examples.converted(array, TensorSpec(name, datatype, ()))
    return inputs
