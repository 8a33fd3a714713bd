"""An example request as a caller has it: arrays, tensors or a frame, alone, by name or in order."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from sealane.client.exports.refusals import example_refused
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec

Given = Array | dict[str, Array] | tuple[Array, ...]


def read(example: object) -> Given:
    """The example as arrays.

    Raises:
        InvalidArgument: something in it is no array.
    """
    if isinstance(example, Mapping):
        return {str(name): array_of(value, str(name)) for name, value in example.items()}
    if isinstance(example, tuple):
        return tuple(array_of(value, str(place)) for place, value in enumerate(example))
    return array_of(example, "example")


def array_of(value: object, name: str) -> Array:
    """One array out of numpy's, a tensor of PyTorch or TensorFlow, a frame of numbers, or nested lists.

    Raises:
        InvalidArgument: none of these, or of a type that no protocol carries.
    """
    if isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ())):
        value = value.detach().cpu().numpy()  # type: ignore[attr-defined]  # a torch.Tensor
    elif callable(getattr(value, "to_numpy", None)):
        value = value.to_numpy()  # type: ignore[attr-defined]  # a frame or a series of pandas
    try:
        array = cast(Array, np.asarray(value))
    except (ValueError, TypeError) as error:
        raise example_refused(f"the example {name!r} is no array") from error
    if array.dtype.kind in "SU":
        encoded = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel().tolist()]
        return _objects(encoded, array.shape)
    if array.dtype.kind == "O" and all(isinstance(item, bytes) for item in array.ravel().tolist()):
        return array
    if array.dtype.kind not in "biuf":
        raise example_refused(f"the example {name!r} holds {array.dtype}, neither numbers nor byte strings")
    return array


def by_name(given: Given, names: Sequence[str]) -> dict[str, Array]:
    """The arrays under the names of a model's inputs, which are in the order that a tuple follows.

    Raises:
        InvalidArgument: another number of arrays, or other names.
    """
    if isinstance(given, dict):
        if set(given) != set(names):
            raise example_refused(f"the example names {sorted(given)} and the model {sorted(names)}")
        return {name: given[name] for name in names}
    arrays = given if isinstance(given, tuple) else (given,)
    if len(arrays) != len(names):
        raise example_refused(f"the example has {len(arrays)} arrays and the model {len(names)} inputs, {list(names)}")
    return dict(zip(names, arrays, strict=True))


def as_request(example: object, signature: Signature) -> dict[str, Array]:
    """An example as a request to a model of that signature.

    Raises:
        InvalidArgument: the model does not take it.
    """
    named = by_name(read(example), [spec.name for spec in signature.inputs])
    request = {spec.name: converted(named[spec.name], spec) for spec in signature.inputs}
    signature.check_inputs(request)
    return request


def converted(array: Array, spec: TensorSpec) -> Array:
    """The array in the datatype of an input, where its values stay what they are (but for digits of a float).

    Raises:
        InvalidArgument: they would not.
    """
    wanted = NUMPY_OF[spec.datatype]
    if array.dtype == wanted:
        return array
    if spec.datatype == "BF16" and array.dtype.name == "bfloat16":
        return array.view(wanted)
    if wanted.kind in "biuf" and array.dtype.kind in "biuf":
        changed = cast(Array, array.astype(wanted))
        if wanted.kind == "f" if array.dtype.kind == "f" else np.array_equal(changed, array):
            return changed
    raise example_refused(f"the example for {spec.name!r} is of {array.dtype} and the model takes {spec.datatype}")


def _objects(items: list[bytes], shape: tuple[int, ...]) -> Array:
    made = np.empty(len(items), np.object_)
    made[:] = items
    return cast(Array, made.reshape(shape))
