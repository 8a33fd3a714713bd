"""Chains of models: which tensors go from one to the next, whether they fit, and in which order they run. Pure.

A chain's tensors have names of their own. A step takes some of them as inputs of its model and gives others; each
tensor is given by one step, or by the caller where no step gives it. The terms are those of Triton's ensembles.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sealane.errors import InvalidArgument
from sealane.tensors import Array, Signature, TensorSpec

MAX_STEPS = 32
DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class Step:
    """One model of a chain.

    Args:
        deployment: id of the deployment that serves it, in the chain's project.
        inputs: input of the model -> tensor of the chain that it takes.
        outputs: output of the model -> tensor of the chain that it gives; others are dropped.
    """

    deployment: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Chain:
    """Models that call each other.

    Args:
        steps: the models, in any order.
        outputs: tensors that callers get; empty for those that no step takes.
    """

    steps: tuple[Step, ...]
    outputs: tuple[str, ...] = ()


def signature_of(chain: Chain, members: Mapping[str, Signature]) -> Signature:
    """What callers of a chain send and get.

    Args:
        chain: the chain.
        members: deployment id -> default signature of its model.

    Raises:
        InvalidArgument: it is no chain that can run: a tensor that nobody gives or that two give, one that does not fit
            the input that takes it, steps in a circle, or an output that is not there.
    """
    if not 1 <= len(chain.steps) <= MAX_STEPS:
        raise _wrong(f"a chain has 1 to {MAX_STEPS} steps, this one has {len(chain.steps)}", "steps")
    given: dict[str, TensorSpec] = {}
    for index, step in enumerate(chain.steps):
        outputs = {spec.name: spec for spec in members[step.deployment].outputs}
        for name, tensor in step.outputs.items():
            if name not in outputs:
                raise _wrong(f"{step.deployment} has no output {name!r}; it has {sorted(outputs)}", f"steps[{index}]")
            if tensor in given:
                raise _wrong(f"tensor {tensor!r} is given by two steps; give each tensor once", f"steps[{index}]")
            given[tensor] = outputs[name]
    taken: dict[str, TensorSpec] = {}
    sent: dict[str, TensorSpec] = {}
    for index, step in enumerate(chain.steps):
        _check_inputs(step, members[step.deployment], f"steps[{index}]")
        for spec in members[step.deployment].inputs:
            tensor = step.inputs[spec.name]
            taken[tensor] = spec
            if tensor in given:
                _check_fit(tensor, given[tensor], spec, step.deployment)
            elif tensor in sent:
                sent[tensor] = _both(tensor, sent[tensor], spec)
            else:
                sent[tensor] = TensorSpec(tensor, spec.datatype, spec.shape)
    stages(chain)
    wanted = chain.outputs or tuple(tensor for tensor in given if tensor not in taken)
    missing = [tensor for tensor in wanted if tensor not in given]
    if missing or not wanted or len(set(wanted)) < len(wanted):
        raise _wrong(f"outputs {missing or list(wanted)} are given by no step, or twice, or none are", "outputs")
    results = tuple(TensorSpec(tensor, given[tensor].datatype, given[tensor].shape) for tensor in wanted)
    return Signature(tuple(sent.values()), results, DEFAULT_SIGNATURE)


def stages(chain: Chain, wanted: Sequence[str] = ()) -> tuple[tuple[Step, ...], ...]:
    """The steps in the order in which they can run, those that can run at the same time together.

    Args:
        chain: the chain.
        wanted: tensors that are needed; steps that none of them needs are left out. All where it is empty.

    Raises:
        InvalidArgument: steps wait for each other in a circle.
    """
    giver = {tensor: step for step in chain.steps for tensor in step.outputs.values()}
    left = _needed(chain, giver, wanted) if wanted else list(chain.steps)
    done: set[str] = set()
    order: list[tuple[Step, ...]] = []
    while left:
        able = [step for step in left if all(tensor in done or tensor not in giver for tensor in step.inputs.values())]
        if not able:
            names = ", ".join(sorted({step.deployment for step in left}))
            raise _wrong(f"steps wait for each other in a circle: {names}", "steps")
        order.append(tuple(able))
        left = [step for step in left if step not in able]
        done.update(tensor for step in able for tensor in step.outputs.values())
    return tuple(order)


def digest_of(chain: Chain, variants: Mapping[str, str]) -> str:
    """What a chain runs, as one digest: its steps, and what each of their deployments serves.

    Args:
        chain: the chain.
        variants: deployment id -> digest of the variant that it serves there.

    Returns:
        ``sha256:`` and hex; empty where a deployment is missing.
    """
    if any(not variants.get(step.deployment) for step in chain.steps):
        return ""
    steps = [
        [step.deployment, variants[step.deployment], dict(step.inputs), dict(step.outputs)] for step in chain.steps
    ]
    content = json.dumps(["sealane/chain/v1", steps, list(chain.outputs)], sort_keys=True)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def inputs_of(step: Step, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What a step's model is sent."""
    return {name: tensors[tensor] for name, tensor in step.inputs.items()}


def outputs_of(step: Step, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """What a step's model gave, as tensors of the chain."""
    return {tensor: outputs[name] for name, tensor in step.outputs.items()}


def _needed(chain: Chain, giver: Mapping[str, Step], wanted: Sequence[str]) -> list[Step]:
    needed: list[Step] = []
    pending = list(wanted)
    while pending:
        step = giver.get(pending.pop())
        if step is not None and step not in needed:
            needed.append(step)
            pending += step.inputs.values()
    return [step for step in chain.steps if step in needed]


def _check_inputs(step: Step, signature: Signature, where: str) -> None:
    names = {spec.name for spec in signature.inputs}
    if set(step.inputs) != names:
        raise _wrong(f"{step.deployment} takes {sorted(names)}, the step maps {sorted(step.inputs)}", where)


def _check_fit(tensor: str, given: TensorSpec, taken: TensorSpec, deployment: str) -> None:
    if given.datatype != taken.datatype or not _compatible(given.shape, taken.shape):
        raise _wrong(
            f"tensor {tensor!r} is {given.datatype} {list(given.shape)}, {deployment} takes {taken.datatype} "
            f"{list(taken.shape)} for its input {taken.name!r}",
            "steps",
        )


def _both(tensor: str, one: TensorSpec, other: TensorSpec) -> TensorSpec:
    """What a tensor must be that two steps take."""
    if one.datatype != other.datatype or not _compatible(one.shape, other.shape):
        raise _wrong(
            f"tensor {tensor!r} is taken as {one.datatype} {list(one.shape)} and as {other.datatype} "
            f"{list(other.shape)}; name them apart",
            "steps",
        )
    shape = tuple(max(size, also) for size, also in zip(one.shape, other.shape, strict=True))
    return TensorSpec(tensor, one.datatype, shape)


def _compatible(given: tuple[int, ...], taken: tuple[int, ...]) -> bool:
    """Whether a tensor of one shape may have the other; -1 is any size."""
    return len(given) == len(taken) and all(-1 in (a, b) or a == b for a, b in zip(given, taken, strict=True))


def _wrong(message: str, field: str) -> InvalidArgument:
    return InvalidArgument(f"{message}; correct the chain", reason="ENSEMBLE_INVALID", field=f"ensemble.{field}")
