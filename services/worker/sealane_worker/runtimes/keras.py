"""Keras 3 archives (``.keras``), run as one TensorFlow function.

Never through ``model.predict``, which costs tens of milliseconds a call. Names are those that ``model.export`` would
give, so that a SavedModel of the same model has the same signature.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.tensors import Array, Signature
from sealane_worker.runtimes import RuntimeInfo, RuntimeOptions
from sealane_worker.runtimes.tensorflow import devices, prepare, spec_of, to_numpy
from sealane_worker.runtimes.variant_files import DEFAULT_SIGNATURE, only_file, unreadable

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Call = Callable[..., Mapping[str, "tf.Tensor"]]


class KerasRuntime:
    """Keeps the model and the function that calls it."""

    def __init__(self) -> None:
        self._model: keras.Model | None = None
        self._call: Call | None = None
        self._names: tuple[str, ...] = ()
        self._halves: frozenset[str] = frozenset()

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Read the archive and trace it once; see :class:`sealane_worker.runtimes.Runtime`."""
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        prepare(options)
        import keras

        file = only_file(path, "a Keras", ".keras")
        try:
            # Safe mode refuses what holds Python code, such as Lambda layers.
            model = keras.saving.load_model(str(file), compile=False, safe_mode=True)
        except (ValueError, TypeError, KeyError, AttributeError, OSError, zipfile.BadZipFile) as error:
            raise unreadable(
                "a Keras archive", "save it with model.save('x.keras') from layers without code of its own"
            ) from error
        if not getattr(model, "inputs", None):
            raise FailedPrecondition(
                "the model does not say what it takes; build it with keras.Input, or export it as a SavedModel",
                reason="MODEL_SIGNATURES",
            )
        signature = self._trace(model)
        self._model = model
        return (signature,)

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """One inference; see :class:`sealane_worker.runtimes.Runtime`."""
        import tensorflow as tf

        if self._call is None:
            raise FailedPrecondition("the model is closed; load it again")
        arrays = [
            inputs[name].view(tf.bfloat16.as_numpy_dtype) if name in self._halves else inputs[name]
            for name in self._names
        ]
        try:
            outputs = self._call(*(tf.constant(array) for array in arrays))
        except (tf.errors.InvalidArgumentError, ValueError, TypeError) as error:
            raise InvalidArgument(
                f"the model refuses these inputs: {str(error).splitlines()[0]}; check shapes against its metadata",
                reason="MODEL_REFUSED_INPUTS",
                field="inputs",
            ) from error
        return {name: to_numpy(tensor) for name, tensor in outputs.items()}

    def close(self) -> None:
        """Let go of the model."""
        self._model = self._call = None

    def _trace(self, model: keras.Model) -> Signature:
        import keras
        import tensorflow as tf

        takes = [tf.TensorSpec(item.shape, item.dtype, name=item.name) for item in model.inputs]
        # A Sequential has one input, and no structure until it is called.
        structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input

        def call(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            packed = keras.tree.pack_sequence_as(structure, list(tensors))
            return _named(model(packed, training=False))

        concrete = tf.function(call, input_signature=takes, autograph=False).get_concrete_function()
        self._call = cast(Call, concrete)
        self._names = tuple(str(spec.name) for spec in takes)
        self._halves = frozenset(str(spec.name) for spec in takes if spec.dtype == tf.bfloat16)
        return Signature(
            tuple(spec_of(str(spec.name), spec) for spec in takes),
            tuple(spec_of(name, spec) for name, spec in concrete.structured_outputs.items()),
            DEFAULT_SIGNATURE,
        )


RUNTIME = RuntimeInfo(
    name="keras",
    formats=("KERAS",),
    package="tensorflow",
    distributions=("keras",),
    install="sealane[tensorflow]",
    create=KerasRuntime,
    devices=devices,
)


def _named(outputs: object) -> dict[str, tf.Tensor]:
    """Outputs by name, as ``model.export`` names them."""
    import keras

    if isinstance(outputs, Mapping):
        return dict(outputs)
    return {f"output_{place}": tensor for place, tensor in enumerate(keras.tree.flatten(outputs))}
