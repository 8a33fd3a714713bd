"""TensorFlow SavedModels, run by signature function. Importing this module imports TensorFlow (500 MB, seconds)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.tensors import Array, Signature, TensorSpec, datatype_of
from sealane_worker.runtimes import RuntimeOptions

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

INIT_OP = "__saved_model_init_op"


class _Function(Protocol):
    """A signature's concrete function (the part used here)."""

    structured_input_signature: tuple[object, Mapping[str, tf.TensorSpec]]
    structured_outputs: Mapping[str, tf.TensorSpec]

    def __call__(self, **inputs: tf.Tensor) -> Mapping[str, tf.Tensor]: ...


class _Loaded(Protocol):
    """What ``tf.saved_model.load`` gives (the part used here)."""

    signatures: Mapping[str, _Function]


class TensorFlowRuntime:
    """Keeps the loaded object: its signatures stop working once it is collected."""

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None
        self._bfloat16: dict[str, set[str]] = {}

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Read the SavedModel; see :class:`sealane_worker.runtimes.Runtime`."""
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        try:
            loaded = cast(_Loaded, tf.saved_model.load(str(path)))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise FailedPrecondition(
                "the folder is not a SavedModel that this runtime can load; export it again with model.export",
                reason="MODEL_UNREADABLE",
            ) from error
        signatures = tuple(
            self._describe(name, function) for name, function in loaded.signatures.items() if name != INIT_OP
        )
        if not signatures:
            raise FailedPrecondition(
                "the SavedModel has no serving signature; export it again with model.export", reason="MODEL_SIGNATURES"
            )
        self._loaded = loaded
        return signatures

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """One inference; see :class:`sealane_worker.runtimes.Runtime`."""
        if self._loaded is None:
            raise FailedPrecondition("the model is closed; load it again")
        halves = self._bfloat16.get(signature_name, set())
        tensors = {
            name: tf.constant(array.view(tf.bfloat16.as_numpy_dtype) if name in halves else array)
            for name, array in inputs.items()
        }
        try:
            outputs = self._loaded.signatures[signature_name](**tensors)
        except (tf.errors.InvalidArgumentError, ValueError) as error:
            raise InvalidArgument(
                f"the model refuses these inputs: {str(error).splitlines()[0]}; check shapes against its metadata",
                field="inputs",
            ) from error
        return {name: _to_numpy(tensor) for name, tensor in outputs.items()}

    def close(self) -> None:
        """Let go of the model."""
        self._loaded = None

    def _describe(self, name: str, function: _Function) -> Signature:
        inputs, outputs = function.structured_input_signature[1], function.structured_outputs
        self._bfloat16[name] = {key for key, spec in inputs.items() if spec.dtype == tf.bfloat16}
        for key, spec in inputs.items():
            if spec.shape.rank is None:
                raise FailedPrecondition(
                    f"input {key!r} of signature {name!r} has no rank; export with a pinned input signature",
                    reason="MODEL_SIGNATURES",
                )
        return Signature(
            tuple(_spec(key, spec) for key, spec in inputs.items()),
            tuple(_spec(key, spec) for key, spec in outputs.items()),
            name,
        )


def _spec(name: str, spec: tf.TensorSpec) -> TensorSpec:
    # An output of unknown rank is told as one free dimension: it informs, nothing is checked by it.
    shape = spec.shape.as_list() if spec.shape.rank is not None else [None]
    dtype = "BF16" if spec.dtype == tf.bfloat16 else datatype_of(np.empty(0, spec.dtype.as_numpy_dtype))
    return TensorSpec(name, dtype, tuple(-1 if size is None else int(size) for size in shape))


def _to_numpy(tensor: tf.Tensor) -> Array:
    array = cast(Array, tensor.numpy())
    if tensor.dtype == tf.bfloat16:
        return array.view(np.dtype("V2"))
    # A string tensor of rank 0 comes as plain bytes.
    return np.asarray(array, np.object_) if tensor.dtype == tf.string else np.asarray(array)
