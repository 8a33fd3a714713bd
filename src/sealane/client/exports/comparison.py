"""Whether an exported model answers as the object that it was made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from sealane.client.exports.written import Written
from sealane.errors import FailedPrecondition
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import Array

#: Largest difference, absolute and relative to the object's own answer, between two ways of computing one function.
TOLERANCE = 1e-4


def compare(written: Written) -> bool:
    """Ask the written model for the example; False where it could not be asked.

    Raises:
        FailedPrecondition: it answers something else than the object does (EXPORT_DIFFERS), or it does not run.
    """
    if not written.inputs:
        return False
    answers = _by_tensorflow(written) if written.path.is_dir() else by_onnx_runtime(written.path, written.inputs)
    if answers is None:
        return False
    own = written.answers
    # Names of the object's own are kept wherever it has any; else the order tells.
    names = list(own) if set(own) <= set(answers) else sorted(answers, key=_place)
    if len(names) != len(own):
        raise _differs(f"it has {len(answers)} outputs and the object {len(own)}", float("inf"))
    for (output, wanted), name in zip(own.items(), names, strict=True):
        _hold(output, wanted, answers[name])
    return True


def named(outputs: object) -> dict[str, Array]:
    """What a model returned, under the names that exports give: keys, or ``output_0`` and so on."""
    if isinstance(outputs, Mapping):
        return {str(name): np.asarray(value) for name, value in outputs.items()}
    if isinstance(outputs, Sequence):
        return {f"output_{place}": np.asarray(value) for place, value in enumerate(outputs)}
    return {"output_0": np.asarray(outputs)}


def _by_tensorflow(written: Written) -> dict[str, Array] | None:
    try:
        import tensorflow as tf
    except ImportError:
        return None
    loaded = tf.saved_model.load(str(written.path))
    function = loaded.signatures[DEFAULT_SIGNATURE]
    answers = function(**{name: tf.constant(array) for name, array in written.inputs.items()})
    return {name: tensor.numpy() for name, tensor in answers.items()}


def by_onnx_runtime(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
    """What a file answers; None where ONNX Runtime is not installed.

    Raises:
        FailedPrecondition: it does not run on these inputs.
    """
    try:
        import onnxruntime as ort
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError:
        return None
    kinds = (item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))
    refusals: tuple[type[Exception], ...] = (ValueError, *kinds)
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        answers = session.run(None, dict(inputs))
    except refusals as error:
        raise FailedPrecondition(
            f"ONNX Runtime does not run the exported model on the example: {' '.join(str(error).split())[:300]}; "
            "correct the example, or export the model yourself and push the file",
            reason="EXPORT_FAILS",
        ) from error
    outputs = [cast(str, item.name) for item in session.get_outputs()]
    return {name: np.asarray(answer) for name, answer in zip(outputs, answers, strict=True)}


def _hold(output: str, wanted: Array, got: Array) -> None:
    """Refuse an output that is off. A column of one number each is the same with and without its second dimension."""
    if got.size != wanted.size:
        raise _differs(f"output {output!r} has shape {list(got.shape)} and not {list(wanted.shape)}", float("inf"))
    got, wanted = got.ravel(), wanted.ravel()
    if wanted.dtype.kind not in "biuf" or got.dtype.kind not in "biuf":
        same = [_bytes(item) for item in got.tolist()] == [_bytes(item) for item in wanted.tolist()]
        if not same:
            raise _differs(f"output {output!r} holds other values", float("inf"))
        return
    numbers, own = got.astype(np.float64), wanted.astype(np.float64)
    if np.allclose(numbers, own, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        return
    with np.errstate(invalid="ignore"):
        far = np.where((numbers == own) | (np.isnan(numbers) & np.isnan(own)), 0.0, np.abs(numbers - own))
    largest = float(far.max())
    raise _differs(f"output {output!r} is off by up to {largest:.3g}", largest)


def _differs(why: str, largest: float) -> FailedPrecondition:
    return FailedPrecondition(
        f"the exported model answers the example otherwise than the object: {why}, allowed is {TOLERANCE:g}; look for "
        "what is random or depends on training in the forward pass, or for doubles that became floats, or export the "
        "model yourself and push the file",
        reason="EXPORT_DIFFERS",
        largest_difference=f"{largest:g}",
    )


def _bytes(item: object) -> object:
    return item.encode() if isinstance(item, str) else item


def _place(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.*?)(\d*)", name)
    assert found is not None
    return found[1], int(found[2] or 0)
