"""A step in Python of the variant's own, from its folder ``package/``. It runs in the model's sandboxed process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sealane.errors import FailedPrecondition, SealaneError
from sealane.tensors import NUMPY_OF, Array, TensorSpec
from sealane_worker.model.steps.step import OPEN, Fields, Place, Specs

FOLDER = "package"

Function = Callable[[dict[str, Array]], Mapping[str, Array]]


class PythonStep:
    """Calls ``module:function`` with a dict of its inputs by name; takes the dict that it returns.

    What the function raises is not changed here: `sealane.errors.InvalidArgument` tells the caller, anything else is
    a failure of the model.
    """

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._name = fields.text("function")
        self._inputs, self._outputs = fields.specs("inputs"), fields.specs("outputs")
        self._function = _load(place, self._name)

    def backward(self, wanted: Specs) -> Specs:
        """Its outputs to its inputs."""
        return self._exchange(wanted, self._outputs, self._inputs)

    def forward(self, given: Specs) -> Specs:
        """Its inputs to its outputs."""
        return self._exchange(given, self._inputs, self._outputs)

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Call it, and hold what it returns against what it declared."""
        result = dict(arrays)
        made = self._function({name: result.pop(name) for name in self._inputs})
        if not isinstance(made, Mapping) or made.keys() != self._outputs.keys():
            got = sorted(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
            raise self._broken(f"it returned {got} and declares {sorted(self._outputs)}")
        for name, spec in self._outputs.items():
            array: Array = np.asarray(made[name])
            if array.dtype != NUMPY_OF[spec.datatype] or not spec.admits(array.shape):
                raise self._broken(
                    f"it returned {name!r} as {array.dtype} {list(array.shape)} and declares {spec.datatype} "
                    f"{list(spec.shape)}"
                )
            result[name] = array
        return result

    def _exchange(self, specs: Specs, old: Specs, new: Specs) -> Specs:
        """`specs` with `new`, in the place of the first of `old`."""
        for spec in old.values():
            _match(self._place, self._place.spec(specs, spec.name), spec)
        first = next(iter(old))
        rest = {name: spec for name, spec in specs.items() if name == first or name not in old}
        return self._place.replaced(rest, first, *new.values())

    def _broken(self, what: str) -> SealaneError:
        return FailedPrecondition(
            f"step {self._place.name}, function {self._name}: {what}; correct the variant's package and push it again",
            reason="STEP_RETURNED",
        )


def _match(place: Place, there: TensorSpec, declared: TensorSpec) -> None:
    sizes = zip(there.shape, declared.shape, strict=False)
    shaped = len(there.shape) == len(declared.shape) and all(-1 in (a, b) or a == b for a, b in sizes)
    if there.datatype not in (declared.datatype, OPEN) or not shaped:
        raise place.refuse(
            f"it declares {declared.name!r} as {declared.datatype} {list(declared.shape)}, there it is "
            f"{there.datatype or 'open'} {list(there.shape)}; declare it so"
        )


def _load(place: Place, name: str) -> Function:
    """Import the function from the variant's folder, which stays first on the path: it may import more later."""
    module_name, _, function_name = name.partition(":")
    if not function_name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise place.refuse(f"function {name!r} is not of the form module:function; correct it")
    folder = (place.folder / FOLDER).resolve()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, function_name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise place.refuse(f"{name!r} cannot be imported from {FOLDER}/ ({error}); correct the package") from error
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).resolve().is_relative_to(folder):
        raise place.refuse(f"module {module_name!r} is an installed one, not of {FOLDER}/; give yours another name")
    if not callable(function):
        raise place.refuse(f"{name!r} is not a function; name one")
    made: Function = function
    return made
