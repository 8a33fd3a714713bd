"""What a step is, and how one reads its part of the manifest. Knows no protobuf: a model process has none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sealane.errors import FailedPrecondition
from sealane.tensors import NUMPY_OF, Array, TensorSpec

#: Tensors of one place in the chain, by name, in the order of the signature.
Specs = dict[str, TensorSpec]

#: Datatype of a spec of which only the step before can say it: a cast takes anything.
OPEN = ""
FLOATS = ("FP32", "FP16", "FP64")


class Step(Protocol):
    """One step: pure functions of tensors and of their specs. Created once, at load; `run` is called by many threads.

    Raises (all three): FailedPrecondition with the reason MANIFEST_STEPS where the tensors do not fit.
    """

    def backward(self, wanted: Specs) -> Specs:
        """What to put in so that `wanted` comes out: for the steps before the model."""
        ...

    def forward(self, given: Specs) -> Specs:
        """What comes out where `given` is put in: for the steps after the model."""
        ...

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """The tensors after the step; those put in are not written to.

        Raises:
            InvalidArgument: the caller's tensors cannot be worked on; names the row where one is to blame.
        """
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step stands: for its messages, and for the files it may read.

    Attributes:
        name: such as ``before[0] (decode_image)``.
        folder: the variant's files.
    """

    name: str
    folder: Path

    def refuse(self, what: str) -> FailedPrecondition:
        """The error of a step that cannot work; `what` says why and what to change."""
        return FailedPrecondition(f"step {self.name}: {what}", reason="MANIFEST_STEPS", field=self.name.split(" ")[0])

    def spec(self, specs: Specs, name: str) -> TensorSpec:
        """A tensor that must be there."""
        if name not in specs:
            raise self.refuse(f"there is no tensor {name!r} here, only {sorted(specs)}; name one of these")
        return specs[name]

    def rows(self, spec: TensorSpec, rank: int, datatypes: tuple[str, ...]) -> TensorSpec:
        """`spec`, checked for rank and datatype; an open datatype fits."""
        if spec.datatype not in (*datatypes, OPEN):
            raise self.refuse(
                f"tensor {spec.name!r} is {spec.datatype}, this step works on {' or '.join(datatypes)}; "
                "put a step that converts it between"
            )
        if rank and len(spec.shape) != rank:
            raise self.refuse(f"tensor {spec.name!r} has shape {list(spec.shape)}, this step needs {rank} dimensions")
        return spec

    def replaced(self, specs: Specs, old: str, *new: TensorSpec) -> Specs:
        """`specs` with `new` in the place of `old`."""
        result: Specs = {}
        for name, spec in specs.items():
            for item in new if name == old else (spec,):
                if item.name in result or (item.name != old and item.name in specs and item is not spec):
                    raise self.refuse(f"there would be two tensors {item.name!r}; choose another name")
                result[item.name] = item
        return result


class Fields:
    """The fields of one step, as ProtoJSON with the proto's field names gives them."""

    def __init__(self, place: Place, values: Mapping[str, object]) -> None:
        self._place = place
        self._values = dict(values)

    def text(self, name: str, default: str | None = None) -> str:
        """A string; without a default it must be there."""
        value = self._values.pop(name, "")
        if not isinstance(value, str) or (not value and default is None):
            raise self._place.refuse(f"{name} must be said; set it")
        return value or default or ""

    def whole(self, name: str, default: int, *, least: int = 0, most: int = 2**31 - 1) -> int:
        """A whole number; 0 or absent gives `default`."""
        value = _whole(self._values.pop(name, 0))
        if value is None or (value and not least <= value <= most):
            raise self._place.refuse(f"{name} is {value}; use {least} to {most}")
        return value or default

    def number(self, name: str, default: float, *, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number; 0 or absent gives `default`."""
        value = _number(self._values.pop(name, 0.0))
        if value is None or not least <= value <= most:
            raise self._place.refuse(f"{name} must be a finite number from {least:g} to {most:g}; correct it")
        return value or default

    def numbers(self, name: str, default: float) -> tuple[float, ...]:
        """Finite numbers; none gives `default` once."""
        found = [_number(item) for item in self._items(name)]
        given = tuple(item for item in found if item is not None)
        if len(given) != len(found):
            raise self._place.refuse(f"{name} holds something that is not a finite number; correct it")
        return given or (default,)

    def flag(self, name: str) -> bool:
        """A yes or no."""
        return self._values.pop(name, False) is True

    def texts(self, name: str) -> tuple[str, ...]:
        """Strings."""
        return tuple(str(item) for item in self._items(name))

    def specs(self, name: str) -> Specs:
        """Tensor specs, by name; at least one."""
        found: Specs = {}
        for item in self._items(name):
            inner = Fields(self._place, item if isinstance(item, Mapping) else {})
            spec = TensorSpec(inner.text("name"), inner.text("datatype"), inner._shape())
            if spec.datatype not in NUMPY_OF or spec.name in found:
                raise self._place.refuse(f"{name}: {spec.name!r} has datatype {spec.datatype!r} or stands there twice")
            found[spec.name] = spec
        if not found:
            raise self._place.refuse(f"{name} must be said; list every tensor with its datatype and shape")
        return found

    def end(self) -> None:
        """Refuse fields that the step does not know: a manifest of a newer release."""
        if self._values:
            raise self._place.refuse(f"this worker does not know {sorted(self._values)}; update it or leave them out")

    def _items(self, name: str) -> list[object]:
        value = self._values.pop(name, [])
        if not isinstance(value, list | tuple):
            raise self._place.refuse(f"{name} must be a list; correct it")
        return list(value)

    def _shape(self) -> tuple[int, ...]:
        sizes = [_whole(item) for item in self._items("shape")]
        shape = tuple(size for size in sizes if size is not None and size >= -1)
        if len(shape) != len(sizes):
            raise self._place.refuse("a shape holds something other than sizes and -1; correct it")
        return shape


def _whole(value: object) -> int | None:
    """A number, or a string of one: ProtoJSON writes 64 bit numbers so."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return int(value) if float(value).is_integer() else None
    except (ValueError, OverflowError):
        return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
