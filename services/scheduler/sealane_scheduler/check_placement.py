"""Which node checks which variants. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sealane_scheduler.filters import NodeView, VariantView, has_runtime, unloadable

#: Format -> the runtime that is made for it.
RUNTIME_OF = {
    "SAVED_MODEL": "tensorflow",
    "KERAS": "keras",
    "LITERT": "litert",
    "ONNX": "onnxruntime",
    "OPENVINO": "openvino",
    "TORCH_EXPORT": "torch",
    "TORCH_SCRIPT": "torch",
    "REMOTE": "remote",
}
#: Runtime -> what has to be installed on a worker.
INSTALL_OF = {
    "tensorflow": "sealane[tensorflow]",
    "keras": "sealane[tensorflow]",
    "litert": "sealane[litert]",
    "onnxruntime": "sealane[onnx]",
    "openvino": "sealane[openvino]",
    "torch": "sealane[torch]",
    "remote": "sealane[worker]",
}
#: Formats that workers offer only where their operator allows code.
EXECUTABLE = frozenset({"TORCH_EXPORT", "TORCH_SCRIPT"})


@dataclass(frozen=True, slots=True)
class Hopeless:
    """Why no worker can load a variant: for programs, and in words with the remedy."""

    variant: str
    reason: str
    message: str


def choose(nodes: Sequence[NodeView], variants: Sequence[VariantView]) -> str:
    """The node that loads most of these variants, rather in the cloud; empty where none loads any."""
    able = {node.node: sum(not unloadable(node, variant) for variant in variants) for node in nodes}
    fit = [node for node in nodes if able[node.node]]
    best = min(fit, key=lambda node: (-able[node.node], node.tier != "cloud", node.node), default=None)
    return "" if best is None else best.node


def hopeless(nodes: Sequence[NodeView], variants: Sequence[VariantView]) -> list[Hopeless]:
    """Variants that none of these nodes loads; none where there is no node, since nothing is known then."""
    return [_why(nodes, variant) for variant in variants if nodes and all(unloadable(node, variant) for node in nodes)]


def _why(nodes: Sequence[NodeView], variant: VariantView) -> Hopeless:
    able = [node for node in nodes if has_runtime(node, variant)]
    if able:
        return Hopeless(
            variant.variant,
            "WORKER_ABSENT",
            f"no worker may load it: {unloadable(able[0], variant)} ({able[0].node}); start a worker that may",
        )
    runtime = variant.runtime or RUNTIME_OF.get(variant.format, "")
    wanted = f"runtime {variant.runtime}" if variant.runtime else f"a runtime for {variant.format}"
    remedy = f"install {INSTALL_OF[runtime]!r} on one" if runtime in INSTALL_OF else "bring one up to date"
    if variant.format in EXECUTABLE:
        remedy += " and set SEALANE_WORKER_EXECUTABLE=true there, since the format holds code"
    return Hopeless(variant.variant, "RUNTIME_ABSENT", f"no worker has {wanted}; {remedy}, then check again")
