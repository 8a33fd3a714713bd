"""Estimators and pipelines of scikit-learn as ONNX, by skl2onnx."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sealane.client.exports import examples
from sealane.client.exports.refusals import example_refused, missing, not_exportable
from sealane.client.exports.written import Written
from sealane.tensors import Array, TensorSpec

if TYPE_CHECKING:
    import sklearn.base

#: What scikit-learn itself calls the rows.
INPUT = "X"


def export(model: sklearn.base.BaseEstimator, example: object, folder: Path) -> Written:
    """Write the estimator, which takes FP32 rows; see :func:`sealane.client.exports.export`.

    A classifier answers ``label`` and ``probabilities``, one column for each class in the order of ``classes_``.
    """
    try:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise missing("a scikit-learn estimator", "skl2onnx", "sklearn") from error
    rows = None if example is None else _rows(example)
    columns = getattr(model, "n_features_in_", None if rows is None else rows.shape[1])
    if columns is None:
        raise not_exportable("estimator", None, "fit it first")
    # Without that option probabilities come as a list of maps, which no protocol carries.
    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None
    try:
        content = skl2onnx.convert_sklearn(
            model, initial_types=[(INPUT, FloatTensorType([None, columns]))], options=options
        ).SerializeToString()
    except _refusals() as error:
        remedy = "fit it, and use steps that skl2onnx converts; a step of your own needs a converter registered there"
        raise not_exportable("estimator", error, remedy) from error
    path = folder / "model.onnx"
    path.write_bytes(content)
    if rows is None:
        return Written(path)
    # The values that the exported model sees, in the precision that the estimator is used to.
    given = examples.by_name(examples.read(example), [INPUT])[INPUT]
    return Written(path, {INPUT: rows}, _answers(model, rows.astype(given.dtype)))


def _rows(example: object) -> Array:
    given = examples.by_name(examples.read(example), [INPUT])[INPUT]
    rows = examples.converted(given, TensorSpec(INPUT, "FP32", (-1, -1)))
    if rows.ndim != 2:
        raise example_refused(f"the example has shape {list(rows.shape)}, an estimator takes [rows, columns]")
    return rows


def _answers(model: sklearn.base.BaseEstimator, rows: Array) -> dict[str, Array]:
    """What the estimator answers, of what the exported model gives too."""
    try:
        if hasattr(model, "predict_proba"):
            return {"label": np.asarray(model.predict(rows)), "probabilities": np.asarray(model.predict_proba(rows))}
        if hasattr(model, "predict"):
            kept = "variable" if getattr(model, "_estimator_type", "") == "regressor" else "label"
            return {kept: np.asarray(model.predict(rows))}
        return {"variable": np.asarray(model.transform(rows))}
    except ValueError as error:
        raise example_refused(
            f"the estimator does not take the example ({str(error).splitlines()[0][:200]})"
        ) from error


def _refusals() -> tuple[type[Exception], ...]:
    from skl2onnx.common import exceptions

    own = [item for item in vars(exceptions).values() if isinstance(item, type) and issubclass(item, Exception)]
    # The converters also let plain ones out, of an estimator that is not fitted and of options unknown to it.
    return (*own, AttributeError, NameError, NotImplementedError, RuntimeError, TypeError, ValueError)
