"""Which framework an object is of, and the export by it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sealane.client.exports import (
    comparison,
    keras_models,
    onnx_models,
    sklearn_estimators,
    tensorflow_modules,
    torch_modules,
)
from sealane.client.exports.written import Exported, Written
from sealane.client.model_imports import Scratch
from sealane.errors import InvalidArgument

_Exporter = Callable[..., Written]
#: Module and class that an object of a framework is an instance of. Keras first: its models may be one of the others.
_KINDS: tuple[tuple[str, str, _Exporter], ...] = (
    ("keras", "Model", keras_models.export),
    ("torch.nn", "Module", torch_modules.export),
    ("sklearn.base", "BaseEstimator", sklearn_estimators.export),
    ("onnx", "ModelProto", onnx_models.export),
    ("tensorflow.python.trackable.base", "Trackable", tensorflow_modules.export),
)
ACCEPTED = (
    "a path, a Keras 3 model, a tf.Module, a PyTorch nn.Module, a scikit-learn estimator or pipeline, or an ONNX "
    "ModelProto"
)


def export(model: object, example: object = None) -> Exported:
    """Write a model that is in memory: Keras and TensorFlow as SavedModel, all others as ONNX.

    Where an example is given and the runtime of the written format is installed, the file is asked for it and has to
    answer as the object does.

    Args:
        model: a Keras 3 model, ``tf.Module``, ``torch.nn.Module``, scikit-learn estimator or pipeline, or
            ``onnx.ModelProto``.
        example: one request: an array, a dict of arrays by input name, or a tuple with one array for each input.

    Raises:
        InvalidArgument: no such object, one that cannot be exported, or an example that it does not take.
        FailedPrecondition: what the export needs is not installed, or the exported file answers something else
            (EXPORT_DIFFERS, with the largest difference).
    """
    exporter = _kind_of(model)[2]
    scratch = Scratch("model")
    scratch.file.mkdir()
    written = exporter(model, example, scratch.file)
    compared = comparison.compare(written)
    examples = (written.inputs,) if written.inputs else ()
    return Exported(written.path, examples, compared, scratch)


def framework_of(model: object) -> tuple[str, str]:
    """Framework of a model that is in memory, and its version; raises as :func:`export` where it has none."""
    name = _kind_of(model)[0].partition(".")[0]
    return name, str(getattr(sys.modules.get(name), "__version__", ""))


def _kind_of(model: object) -> tuple[str, str, _Exporter]:
    for module, name, exporter in _KINDS:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and isinstance(model, kind):
            return module, name, exporter
    raise InvalidArgument(
        f"a {type(model).__module__}.{type(model).__qualname__} cannot be pushed; give {ACCEPTED}",
        reason="MODEL_NOT_EXPORTABLE",
        field="model",
    )
