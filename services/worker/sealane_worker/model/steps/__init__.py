"""Steps before and after the model, as its manifest declares them: callers send a photo and get words.

:func:`wrap` puts them around a runtime. The whole chain is made and checked when a model is loaded: every file is read,
every library imported, every name, datatype and shape followed from the model's own signature outwards. A request then
meets only what depends on it.

Steps run on a whole batch. Where one row is to blame, the error's metadata holds its number in the batch (``row``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sealane.errors import FailedPrecondition
from sealane.tensors import Array, Signature
from sealane_worker.model.steps.boxes import NonMaximumSuppression
from sealane_worker.model.steps.classes import Labels, TopK
from sealane_worker.model.steps.images import DecodeImage, Resize
from sealane_worker.model.steps.package import PythonStep
from sealane_worker.model.steps.step import OPEN, Fields, Place, Specs, Step
from sealane_worker.model.steps.values import Cast, Normalize, Rename, Softmax
from sealane_worker.runtimes import Runtime, RuntimeOptions

#: Every step, by its field in the manifest's ``Step`` message.
KINDS: dict[str, Callable[[Place, Fields], Step]] = {
    "decode_image": DecodeImage,
    "resize": Resize,
    "normalize": Normalize,
    "cast": Cast,
    "rename": Rename,
    "top_k": TopK,
    "labels": Labels,
    "non_maximum_suppression": NonMaximumSuppression,
    "softmax": Softmax,
    "python": PythonStep,
}


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a manifest.

    Attributes:
        before: those before the model, each a ``Step`` as ProtoJSON with the proto's field names.
        after: those after it.
        executable: whether Python of the variant's own may run on this worker.
    """

    before: tuple[Mapping[str, object], ...] = ()
    after: tuple[Mapping[str, object], ...] = ()
    executable: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is done for one signature, whose own tensors are `inner`."""

    inner: Signature
    before: tuple[Step, ...]
    after: tuple[Step, ...]


def wrap(
    runtime: Runtime, signatures: tuple[Signature, ...], steps: Steps, folder: Path
) -> tuple[Runtime, tuple[Signature, ...]]:
    """A loaded runtime with `steps` around it, and the signatures that callers see.

    With several signatures, the steps before the model go to those whose inputs they fit, the steps after it to those
    whose outputs they fit; each must fit one. The others are served as they are.

    Args:
        runtime: already loaded.
        signatures: what it said at load.
        steps: of the manifest.
        folder: the variant's files, for labels and for Python.

    Raises:
        FailedPrecondition: a step is wrong or does not fit (MANIFEST_STEPS, naming it and the tensor), or is Python
            where that is not allowed (EXECUTABLE_REFUSED).
        Unimplemented: a library is not installed; the message holds the command.
    """
    if not steps.before and not steps.after:
        return runtime, signatures
    before = tuple(_make("before", number, step, steps, folder) for number, step in enumerate(steps.before))
    after = tuple(_make("after", number, step, steps, folder) for number, step in enumerate(steps.after))
    inputs = _fit(signatures, lambda signature: _inputs(signature, before))
    outputs = _fit(signatures, lambda signature: _outputs(signature, after))
    plans, outer = {}, []
    for signature in signatures:
        name = signature.name
        plans[name] = _Plan(signature, before if name in inputs else (), after if name in outputs else ())
        taken, given = inputs.get(name), outputs.get(name)
        outer.append(
            Signature(
                signature.inputs if taken is None else tuple(taken.values()),
                signature.outputs if given is None else tuple(given.values()),
                name,
            )
        )
    return _Stepped(runtime, plans), tuple(outer)


class _Stepped:
    """A runtime between its steps."""

    def __init__(self, runtime: Runtime, plans: dict[str, _Plan]) -> None:
        self._runtime = runtime
        self._plans = plans

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Refused: steps are put around a model that is loaded."""
        raise FailedPrecondition("the model is loaded already; put steps around it with wrap()", reason="MODEL_LOADED")

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """Steps before, the model, steps after; see :class:`sealane_worker.runtimes.Runtime`."""
        plan = self._plans[signature_name]
        arrays = dict(inputs)
        for step in plan.before:
            arrays = step.run(arrays)
        if plan.before:
            plan.inner.check_inputs(arrays)
        arrays = self._runtime.run(arrays, signature_name)
        for step in plan.after:
            arrays = step.run(arrays)
        return arrays

    def close(self) -> None:
        """Let go of the model."""
        self._runtime.close()


def _make(side: str, number: int, message: Mapping[str, object], steps: Steps, folder: Path) -> Step:
    kinds = sorted(message)
    kind = kinds[0] if len(kinds) == 1 else ""
    place = Place(f"{side}[{number}] ({kind or 'unknown'})", folder)
    values = message.get(kind)
    if kind not in KINDS or not isinstance(values, Mapping):
        raise place.refuse(f"it is {kinds or 'empty'}; a step is one of {', '.join(KINDS)}")
    if kind == "python" and not steps.executable:
        raise FailedPrecondition(
            f"step {place.name} is Python of the variant's own, which this worker does not run; allow it with "
            "SEALANE_WORKER_EXECUTABLE or deploy elsewhere",
            reason="EXECUTABLE_REFUSED",
        )
    fields = Fields(place, values)
    step = KINDS[kind](place, fields)
    fields.end()
    return step


def _fit(signatures: tuple[Signature, ...], follow: Callable[[Signature], Specs]) -> dict[str, Specs]:
    """What `follow` says of the signatures that fit, by name; at least one does.

    Raises:
        FailedPrecondition: none fits; the error is the first signature's.
    """
    found: dict[str, Specs] = {}
    refusals: list[FailedPrecondition] = []
    for signature in signatures:
        try:
            found[signature.name] = follow(signature)
        except FailedPrecondition as refusal:
            refusals.append(refusal)
    if not found and refusals:
        raise refusals[0]
    return found


def _inputs(signature: Signature, before: tuple[Step, ...]) -> Specs:
    """What callers send, from the model's inputs backwards."""
    specs = {spec.name: spec for spec in signature.inputs}
    for step in reversed(before):
        specs = step.backward(specs)
    unsaid = [spec.name for spec in specs.values() if spec.datatype == OPEN]
    if unsaid:
        raise FailedPrecondition(
            f"a cast of tensor {unsaid[0]!r} before the model takes any datatype, so nothing says what callers send; "
            "put a step before it that does, such as decode_image, or use normalize with uint8_input",
            reason="MANIFEST_STEPS",
            field="before",
        )
    _check(specs, signature, before)
    return specs


def _check(specs: Specs, signature: Signature, before: tuple[Step, ...]) -> None:
    """Follow what callers send to the model: a cast says only on this way whether it can work."""
    for step in before:
        specs = step.forward(specs)
    for wanted in signature.inputs:
        made = specs.get(wanted.name)
        if made is None or made.datatype != wanted.datatype or len(made.shape) != len(wanted.shape):
            raise FailedPrecondition(
                f"the steps before the model make {made} of tensor {wanted.name!r}, it takes {wanted}; correct them",
                reason="MANIFEST_STEPS",
                field="before",
            )


def _outputs(signature: Signature, after: tuple[Step, ...]) -> Specs:
    """What callers get, from the model's outputs forwards."""
    specs = {spec.name: spec for spec in signature.outputs}
    for step in after:
        specs = step.forward(specs)
    return specs
