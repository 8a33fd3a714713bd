"""Which node checks what, and when there is none."""

from __future__ import annotations

from sealane_scheduler.check_placement import EXECUTABLE, INSTALL_OF, RUNTIME_OF, choose, hopeless
from sealane_scheduler.filters import NodeView, VariantView
from sealane_worker.runtimes import known_runtimes


def node(name: str, *runtimes: tuple[str, str], tier: str = "edge", **more: str) -> NodeView:
    return NodeView(
        name, tier, "", "internal", True, {runtime: frozenset({form}) for runtime, form in runtimes}, **more
    )


def variant(name: str, form: str, runtime: str = "") -> VariantView:
    return VariantView(name, form, "FLOAT32", 1, "sha256:0", runtime=runtime)


LITERT, ONNX = ("litert", "LITERT"), ("onnxruntime", "ONNX")
A, B = variant("a", "LITERT"), variant("b", "ONNX")


def test_the_node_that_loads_most_is_chosen_rather_in_the_cloud() -> None:
    edge, cloud, both = node("e", LITERT), node("z", LITERT, tier="cloud"), node("m", LITERT, ONNX)
    assert choose([edge, cloud, both], [A, B]) == "m"
    assert choose([edge, cloud, both], [A]) == "z"
    assert choose([edge], [B]) == ""
    assert choose([], [A]) == ""


def test_a_runtime_that_is_wanted_by_name_has_to_be_there() -> None:
    openvino = node("o", ("openvino", "ONNX"))
    assert choose([openvino], [variant("b", "ONNX", "onnxruntime")]) == ""
    assert choose([openvino], [variant("b", "ONNX", "openvino")]) == "o"


def test_what_nobody_has_names_what_to_install() -> None:
    (found,) = hopeless([node("e", LITERT)], [A, B])
    assert (found.variant, found.reason) == ("b", "RUNTIME_ABSENT")
    assert "sealane[onnx]" in found.message
    (code,) = hopeless([node("e", LITERT)], [variant("t", "TORCH_SCRIPT")])
    assert "sealane[torch]" in code.message and "SEALANE_WORKER_EXECUTABLE" in code.message
    (named,) = hopeless([node("e", ONNX)], [variant("b", "ONNX", "openvino")])
    assert "runtime openvino" in named.message and "sealane[openvino]" in named.message


def test_a_node_that_may_not_run_models_is_no_missing_runtime() -> None:
    (found,) = hopeless([node("e", LITERT, sandbox="none", sandbox_wanted="full")], [A])
    assert found.reason == "WORKER_ABSENT" and "sandbox" in found.message


def test_without_any_node_nothing_is_known() -> None:
    assert hopeless([], [A]) == []


def test_the_table_is_that_of_the_workers() -> None:
    known = known_runtimes()
    assert {name: info.install for name, info in known.items()} == INSTALL_OF
    own = {form: info for info in known.values() for form in info.formats if form in RUNTIME_OF}
    assert own.keys() == RUNTIME_OF.keys()
    assert all(form in known[runtime].formats for form, runtime in RUNTIME_OF.items())
    assert {form for info in known.values() for form in info.executable} == EXECUTABLE
