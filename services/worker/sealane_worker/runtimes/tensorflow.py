"""TensorFlow SavedModels, run by signature function. Loading one imports TensorFlow (500 MB, seconds)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols.savedmodel import read_methods
from sealane.tensors import Array, Signature, TensorSpec, datatype_of
from sealane_worker.runtimes import RuntimeInfo, RuntimeOptions
from sealane_worker.runtimes.variant_files import NO_FOLDER, require_device, settle_folders, unserved

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

INIT_OP = "__saved_model_init_op"


class _Function(Protocol):
    """A signature's concrete function (the part used here)."""

    structured_input_signature: tuple[object, Mapping[str, tf.TensorSpec]]
    structured_outputs: Mapping[str, tf.TensorSpec]

    def __call__(self, **inputs: tf.Tensor) -> Mapping[str, tf.Tensor]: ...


class _Loaded(Protocol):
    """What ``tf.saved_model.load`` gives (the part used here)."""

    signatures: Mapping[str, _Function]


def prepare(options: RuntimeOptions) -> None:
    """Set TensorFlow up for one model, before anything of it runs.

    Raises:
        FailedPrecondition: the device is not present here.
    """
    settle_folders()
    # A person's own settings of Keras are none of a model's; the sandbox would not let them be read either.
    os.environ["KERAS_HOME"] = NO_FOLDER
    import tensorflow as tf

    require_device(options.device, devices(), "TensorFlow")
    try:
        if options.device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        for accelerator in tf.config.get_visible_devices("GPU"):
            # It would take all of the device's memory, which other models share.
            tf.config.experimental.set_memory_growth(accelerator, True)
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.instances)
    except RuntimeError:
        # In a model process nothing has run before; elsewhere the first model's threads hold.
        logger.warning("tensorflow runs already and keeps its threads")


def devices() -> tuple[str, ...]:
    """Devices that TensorFlow finds, such as ``cpu`` and ``cuda``."""
    settle_folders()
    import tensorflow as tf

    listed = tf.config.list_physical_devices()
    return tuple(sorted({str(item.device_type).lower().replace("gpu", "cuda") for item in listed}))


class TensorFlowRuntime:
    """Keeps the loaded object: its signatures stop working once it is collected."""

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None
        self._bfloat16: dict[str, set[str]] = {}

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Read the SavedModel; see :class:`sealane_worker.runtimes.Runtime`."""
        prepare(options)
        import tensorflow as tf

        try:
            loaded = cast(_Loaded, tf.saved_model.load(str(path)))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise FailedPrecondition(
                "the folder is not a SavedModel that this runtime can load; export it again with model.export",
                reason="MODEL_UNREADABLE",
            ) from error
        methods = read_methods(path)
        signatures = tuple(
            replace(self._describe(name, function), method=methods.get(name, ""))
            for name, function in loaded.signatures.items()
            if name != INIT_OP
        )
        if not signatures:
            raise FailedPrecondition(
                "the SavedModel has no serving signature; export it again with model.export", reason="MODEL_SIGNATURES"
            )
        self._loaded = loaded
        return signatures

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """One inference; see :class:`sealane_worker.runtimes.Runtime`."""
        import tensorflow as tf

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
        return {name: to_numpy(tensor) for name, tensor in outputs.items()}

    def close(self) -> None:
        """Let go of the model."""
        self._loaded = None

    def _describe(self, name: str, function: _Function) -> Signature:
        import tensorflow as tf

        inputs, outputs = function.structured_input_signature[1], function.structured_outputs
        self._bfloat16[name] = {key for key, spec in inputs.items() if spec.dtype == tf.bfloat16}
        for key, spec in inputs.items():
            if spec.shape.rank is None:
                raise FailedPrecondition(
                    f"input {key!r} of signature {name!r} has no rank; export with a pinned input signature",
                    reason="MODEL_SIGNATURES",
                )
        return Signature(
            tuple(spec_of(key, spec) for key, spec in inputs.items()),
            tuple(spec_of(key, spec) for key, spec in outputs.items()),
            name,
        )


RUNTIME = RuntimeInfo(
    name="tensorflow",
    formats=("SAVED_MODEL",),
    package="tensorflow",
    distributions=("tensorflow", "tensorflow-cpu"),
    install="sealane[tensorflow]",
    create=TensorFlowRuntime,
    devices=devices,
)


def spec_of(name: str, spec: tf.TensorSpec) -> TensorSpec:
    """What a caller is told of a tensor.

    Raises:
        FailedPrecondition: a type that no protocol carries.
    """
    import tensorflow as tf

    # An output of unknown rank is told as one free dimension: it informs, nothing is checked by it.
    shape = spec.shape.as_list() if spec.shape.rank is not None else [None]
    try:
        datatype = "BF16" if spec.dtype == tf.bfloat16 else datatype_of(np.empty(0, spec.dtype.as_numpy_dtype))
    except InvalidArgument as error:
        raise unserved(name, f"is {spec.dtype.name}, which no protocol carries", "export it as another type") from error
    return TensorSpec(name, datatype, tuple(-1 if size is None else int(size) for size in shape))


def to_numpy(tensor: tf.Tensor) -> Array:
    """The elements of a tensor."""
    import tensorflow as tf

    array = cast(Array, tensor.numpy())
    if tensor.dtype == tf.bfloat16:
        return array.view(np.dtype("V2"))
    # A string tensor of rank 0 comes as plain bytes.
    return np.asarray(array, np.object_) if tensor.dtype == tf.string else np.asarray(array)
