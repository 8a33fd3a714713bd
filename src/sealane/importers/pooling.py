"""Pooling with rounding up, as MXNet and Caffe do it, in ONNX."""

from __future__ import annotations

from dataclasses import dataclass

from sealane.importers.onnx_graph import OnnxGraph


@dataclass(frozen=True, slots=True)
class Window:
    """Where the windows lie.

    Attributes:
        kernel: size per spatial axis.
        strides: step per axis.
        pad: padding before and behind, per axis.
        ceil: whether a last window that is not full counts.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pad: tuple[int, ...]
    ceil: bool

    @property
    def may_end_outside(self) -> bool:
        """Whether, for some sizes of the input, rounding up adds a window of nothing but padding.

        Frameworks and runtimes disagree whether that window counts.
        """
        return self.ceil and any(
            kernel < pad + stride for kernel, pad, stride in zip(self.kernel, self.pad, self.strides, strict=True)
        )


def max_pool(graph: OnnxGraph, x: str, window: Window) -> str:
    """The greatest of each window; padding never counts."""
    return graph.add(
        "MaxPool",
        x,
        kernel_shape=list(window.kernel),
        strides=list(window.strides),
        pads=[*window.pad, *window.pad],
        ceil_mode=int(window.ceil),
    )


def average_pool(graph: OnnxGraph, x: str, window: Window, *, count_padding: bool) -> str:
    """The mean of each window.

    Args:
        graph: where to.
        x: the tensor.
        window: where the windows lie.
        count_padding: whether padding counts as zeros. What a window rounded up reaches behind the padding never
            counts; runtimes have disagreed on that, so such padding is written out.
    """
    pads = [*window.pad, *window.pad]
    if count_padding and window.ceil and any(pads):
        # The padding becomes part of the tensor: then only what lies behind it is left out of the count.
        x = graph.add("Pad", x, graph.integers([0, 0, *window.pad, 0, 0, *window.pad]), graph.scalar(0))
        pads, count_padding = [0] * len(pads), False
    return graph.add(
        "AveragePool",
        x,
        kernel_shape=list(window.kernel),
        strides=list(window.strides),
        pads=pads,
        ceil_mode=int(window.ceil),
        count_include_pad=int(count_padding),
    )
