"""Steps on numbers, with numpy alone: normalised pixels, another datatype, another name, probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sealane.errors import InvalidArgument
from sealane.tensors import NUMPY_OF, Array, TensorSpec
from sealane_worker.model.steps.step import FLOATS, OPEN, Fields, Place, Specs

#: What a cast takes and makes: neither text nor raw bits.
NUMBERS = tuple(name for name in NUMPY_OF if name not in ("BYTES", "BF16"))


class Normalize:
    """``(x * scale - mean) / deviation`` in float32, per channel of the last dimension."""

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._tensor = fields.text("tensor")
        scale = fields.number("scale", 1.0)
        mean, deviation = fields.numbers("mean", 0.0), fields.numbers("deviation", 1.0)
        self._first = fields.flag("channels_first")
        self._bytes = fields.flag("uint8_input")
        self._channels = max(len(mean), len(deviation))
        if 0 in deviation or not {len(mean), len(deviation)} <= {1, self._channels}:
            raise place.refuse(
                f"mean has {len(mean)} and deviation {len(deviation)} numbers, or one is 0; give one per channel or "
                "one for all"
            )
        # One multiplication and one subtraction a pixel: (x s - m) / d = x (s / d) - m / d.
        self._factor = np.asarray([scale / item for item in deviation], np.float32)
        self._offset = np.asarray(np.divide(mean, deviation), np.float32)
        if not (np.isfinite(self._factor).all() and np.isfinite(self._offset).all()):
            raise place.refuse("scale, mean and deviation are beyond float32; choose others")

    def backward(self, wanted: Specs) -> Specs:
        """Numbers to pixels."""
        spec = self._place.rows(self._place.spec(wanted, self._tensor), 4 if self._first else 0, ("FP32",))
        shape = spec.shape
        if self._first:
            shape = (shape[0], *shape[2:], shape[1])
        datatype = "UINT8" if self._bytes else "FP32"
        return self._place.replaced(wanted, spec.name, TensorSpec(spec.name, datatype, self._per_channel(shape)))

    def forward(self, given: Specs) -> Specs:
        """Pixels to numbers."""
        datatypes = ("UINT8",) if self._bytes else ("FP32",)
        spec = self._place.rows(self._place.spec(given, self._tensor), 4 if self._first else 0, datatypes)
        shape = self._per_channel(spec.shape)
        if self._first:
            shape = (shape[0], shape[3], *shape[1:3])
        return self._place.replaced(given, spec.name, TensorSpec(spec.name, "FP32", shape))

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """A new array, in the order of channels that the model wants."""
        pixels = arrays[self._tensor]
        if self._channels > 1 and pixels.shape[-1] != self._channels:
            raise InvalidArgument(
                f"input {self._tensor!r} has {pixels.shape[-1]} channels, the model takes {self._channels}",
                reason="INPUT_SHAPE_MISMATCH",
                field=f"inputs.{self._tensor}.shape",
            )
        factor, offset = self._factor, self._offset
        if self._first:
            pixels = np.moveaxis(pixels, -1, 1)
            factor, offset = factor.reshape(-1, 1, 1), offset.reshape(-1, 1, 1)
        shape = pixels.shape
        if self._channels > 1 and not self._first and pixels.ndim > 1:
            # Lines of a picture instead of pixels: numpy is four times slower on rows of three numbers.
            pixels = pixels.reshape(-1, shape[-2] * shape[-1])
            factor, offset = (np.tile(np.broadcast_to(each, shape[-1]), shape[-2]) for each in (factor, offset))
        made = np.empty(pixels.shape, np.float32)
        np.multiply(pixels, factor, out=made, casting="unsafe", dtype=np.float32)
        made -= offset
        return {**arrays, self._tensor: made.reshape(shape)}

    def _per_channel(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """`shape` (channels last) with the number of channels that the means say."""
        if self._channels == 1:
            return shape
        if not shape or shape[-1] not in (-1, self._channels):
            raise self._place.refuse(
                f"it has numbers for {self._channels} channels and tensor {self._tensor!r} is {list(shape)}; give one "
                "per channel or one for all"
            )
        return (*shape[:-1], self._channels)


class Cast:
    """Another datatype. Numbers beyond it become its nearest (infinity for floats), NaN becomes 0 in integers."""

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._tensor = fields.text("tensor")
        self._datatype = fields.text("datatype")
        if self._datatype not in NUMBERS:
            raise place.refuse(f"datatype {self._datatype!r} cannot be cast to; use one of {', '.join(NUMBERS)}")

    def backward(self, wanted: Specs) -> Specs:
        """Any datatype before: the step before says which."""
        spec = self._place.rows(self._place.spec(wanted, self._tensor), 0, (self._datatype,))
        return self._place.replaced(wanted, spec.name, TensorSpec(spec.name, OPEN, spec.shape))

    def forward(self, given: Specs) -> Specs:
        """This datatype after."""
        spec = self._place.rows(self._place.spec(given, self._tensor), 0, NUMBERS)
        return self._place.replaced(given, spec.name, TensorSpec(spec.name, self._datatype, spec.shape))

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """A new array, or the same where nothing changes."""
        return {**arrays, self._tensor: cast(arrays[self._tensor], NUMPY_OF[self._datatype])}


def cast(array: Array, target: np.dtype[np.generic]) -> Array:
    """`array` in the datatype `target`, clipped where it cannot hold a number."""
    if array.dtype == target:
        return array
    if target.kind not in "iu" or np.can_cast(array.dtype, target, "safe"):
        with np.errstate(over="ignore"):
            return array.astype(target)
    limits = np.iinfo(target.str)
    if array.dtype.kind != "f":
        held = np.iinfo(array.dtype.str)
        low, high = max(limits.min, held.min), min(limits.max, held.max)
        return np.clip(array, low, high).astype(target)
    wide = array.astype(np.float64)
    # The greatest integers of 64 bit have no double: the next lower one is the nearest that can be cast.
    high_number = float(limits.max) if int(float(limits.max)) <= limits.max else np.nextafter(float(limits.max), 0)
    return np.clip(np.nan_to_num(wide, nan=0.0), float(limits.min), high_number).astype(target)


class Rename:
    """Another name."""

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._tensor = fields.text("tensor")
        self._to = fields.text("to")

    def backward(self, wanted: Specs) -> Specs:
        """The new name to the old."""
        spec = self._place.spec(wanted, self._to)
        return self._place.replaced(wanted, self._to, TensorSpec(self._tensor, spec.datatype, spec.shape))

    def forward(self, given: Specs) -> Specs:
        """The old name to the new."""
        spec = self._place.spec(given, self._tensor)
        return self._place.replaced(given, self._tensor, TensorSpec(self._to, spec.datatype, spec.shape))

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """The same arrays."""
        return {self._to if name == self._tensor else name: array for name, array in arrays.items()}


class Softmax:
    """Scores to probabilities over the last dimension."""

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._tensor = fields.text("tensor")

    def backward(self, wanted: Specs) -> Specs:
        """The same spec."""
        return self.forward(wanted)

    def forward(self, given: Specs) -> Specs:
        """The same spec."""
        spec = self._place.rows(self._place.spec(given, self._tensor), 0, FLOATS)
        if not spec.shape:
            raise self._place.refuse(f"tensor {spec.name!r} is a single number; softmax needs a dimension")
        return given

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """A new array in the same datatype, computed in float32 at least and without overflow."""
        scores = arrays[self._tensor]
        wide: npt.NDArray[np.floating] = scores.astype(np.result_type(scores.dtype, np.float32))
        with np.errstate(invalid="ignore"):
            wide -= wide.max(axis=-1, keepdims=True)
            np.exp(wide, out=wide)
            wide /= wide.sum(axis=-1, keepdims=True)
        return {**arrays, self._tensor: wide.astype(scores.dtype, copy=False)}
