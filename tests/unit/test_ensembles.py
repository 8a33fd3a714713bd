"""Chains: what can run, in which order, and what its callers send and get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealane import ensemble_messages
from sealane.ensembles import Chain, Step, signature_of, stages
from sealane.errors import InvalidArgument
from sealane.tensors import Signature, TensorSpec


def model(inputs: dict[str, str], outputs: dict[str, str], shape: tuple[int, ...] = (-1, 4)) -> Signature:
    specs = ([TensorSpec(name, kind, shape) for name, kind in group.items()] for group in (inputs, outputs))
    return Signature(*map(tuple, specs))


MEMBERS = {
    "decode": model({"jpeg": "UINT8"}, {"pixels": "FP32"}),
    "detect": model({"image": "FP32"}, {"boxes": "FP32", "scores": "FP32"}),
    "read": model({"image": "FP32", "where": "FP32"}, {"text": "BYTES"}),
}
DECODE = Step("decode", {"jpeg": "file"}, {"pixels": "picture"})
DETECT = Step("detect", {"image": "picture"}, {"boxes": "boxes", "scores": "scores"})
READ = Step("read", {"image": "picture", "where": "boxes"}, {"text": "plates"})
CHAIN = Chain((READ, DETECT, DECODE))


def test_callers_send_what_no_step_gives_and_get_what_no_step_takes() -> None:
    signature = signature_of(CHAIN, MEMBERS)
    assert [(spec.name, spec.datatype) for spec in signature.inputs] == [("file", "UINT8")]
    assert {(spec.name, spec.datatype) for spec in signature.outputs} == {("plates", "BYTES"), ("scores", "FP32")}
    chosen = signature_of(Chain(CHAIN.steps, ("boxes", "plates")), MEMBERS)
    assert [spec.name for spec in chosen.outputs] == ["boxes", "plates"]


def test_steps_run_when_what_they_take_is_there() -> None:
    assert stages(CHAIN) == ((DECODE,), (DETECT,), (READ,))
    beside = Chain((DECODE, DETECT, Step("detect", {"image": "picture"}, {"boxes": "other"})))
    assert [len(stage) for stage in stages(beside)] == [1, 2]


def test_steps_that_no_wanted_output_needs_are_left_out() -> None:
    assert stages(CHAIN, ("scores",)) == ((DECODE,), (DETECT,))
    assert stages(CHAIN, ("plates",)) == ((DECODE,), (DETECT,), (READ,))


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        (Chain(()), "1 to 32 steps"),
        (Chain((DECODE,) * 33), "1 to 32 steps"),
        (Chain((Step("decode", {"jpeg": "file"}, {"sound": "picture"}),)), "no output 'sound'"),
        (Chain((Step("decode", {}, {"pixels": "picture"}),)), "takes \\['jpeg'\\]"),
        (Chain((Step("decode", {"jpeg": "f", "png": "g"}, {"pixels": "p"}),)), "the step maps"),
        (Chain((DECODE, Step("decode", {"jpeg": "g"}, {"pixels": "picture"}))), "given by two steps"),
        (Chain((DECODE, Step("read", {"image": "picture", "where": "file"}, {"text": "t"}))), "name them apart"),
        (Chain((READ, Step("decode", {"jpeg": "plates"}, {"pixels": "picture"}), DETECT)), "decode takes UINT8"),
        (Chain((Step("detect", {"image": "a"}, {"boxes": "b"}), Step("detect", {"image": "b"}, {"boxes": "a"}))),
         "in a circle"),
        (Chain((DECODE,), ("nothing",)), "given by no step"),
        (Chain((DECODE,), ("picture", "picture")), "twice"),
        (Chain((Step("decode", {"jpeg": "file"}, {}),)), "none are"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_the_reason(chain: Chain, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason) as refused:
        signature_of(chain, MEMBERS)
    assert refused.value.field.startswith("ensemble.")


def test_shapes_must_be_able_to_agree() -> None:
    wide = {**MEMBERS, "detect": model({"image": "FP32"}, {"boxes": "FP32", "scores": "FP32"}, (-1, 5))}
    with pytest.raises(InvalidArgument, match=r"\[-1, 4\], detect takes FP32 \[-1, 5\]"):
        signature_of(Chain((DECODE, DETECT)), wide)
    free = {**MEMBERS, "detect": model({"image": "FP32"}, {"boxes": "FP32", "scores": "FP32"}, (1, -1))}
    assert signature_of(Chain((DECODE, DETECT)), free)


def test_a_tensor_that_two_steps_take_is_what_both_accept() -> None:
    members = {"a": model({"x": "FP32"}, {"y": "FP32"}, (-1, 4)), "b": model({"x": "FP32"}, {"y": "FP32"}, (2, -1))}
    both = Chain((Step("a", {"x": "in"}, {"y": "p"}), Step("b", {"x": "in"}, {"y": "q"})))
    assert signature_of(both, members).inputs == (TensorSpec("in", "FP32", (2, 4)),)


def test_messages_hold_the_same_chain() -> None:
    assert ensemble_messages.chain_of(ensemble_messages.message_of(CHAIN)) == CHAIN
    signature = signature_of(CHAIN, MEMBERS)
    assert ensemble_messages.signature_of(ensemble_messages.signature_message(signature)) == signature


#: Steps by the tensors that they take and give; no tensor is given twice.
EDGES = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8, unique_by=lambda pair: pair[1]
)


@given(EDGES)
def test_every_order_is_one_in_which_nothing_is_missing(edges: list[tuple[int, int]]) -> None:
    """Steps take t<i> and give t<j>; whatever is accepted has each step behind those that it needs."""
    steps = tuple(Step(f"m{n}", {"x": f"t{take}"}, {"y": f"t{give}"}) for n, (take, give) in enumerate(edges))
    try:
        order = stages(Chain(steps))
    except InvalidArgument:
        return
    given_: set[str] = {f"t{n}" for n in range(6)} - {f"t{give}" for _, give in edges}
    for stage in order:
        assert all(set(step.inputs.values()) <= given_ for step in stage)
        given_ |= {tensor for step in stage for tensor in step.outputs.values()}
    assert sorted(step.deployment for stage in order for step in stage) == sorted(step.deployment for step in steps)
