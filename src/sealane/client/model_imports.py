"""Models of MXNet and Caffe on disk, turned into ONNX while they are pushed."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from sealane.errors import InvalidArgument
from sealane.tensors import Signature

SYMBOL_END = "-symbol.json"
#: What an imported model is called in its variant.
ONNX_NAME = "model.onnx"


class Scratch:
    """A file in a folder of its own, which goes when this object does.

    Attributes:
        file: where it is, or will be.
    """

    def __init__(self, name: str) -> None:
        folder = tempfile.mkdtemp(prefix="sealane-push-")
        self.file = Path(folder) / name
        weakref.finalize(self, shutil.rmtree, folder, True)


def from_mxnet(path: Path, signatures: Sequence[Signature]) -> Scratch:
    """The model of which `path` is the symbol or the params; input shapes come from the signature where one is given.

    Raises:
        InvalidArgument: one of the two files is missing, or they are no model that can be turned.
        Unimplemented: the extra is not installed.
    """
    from sealane.importers import mxnet

    prefix = path.name.removesuffix(SYMBOL_END) if path.name.endswith(SYMBOL_END) else path.stem.rpartition("-")[0]
    symbol = path.with_name(prefix + SYMBOL_END)
    # Epochs are counted with four digits: the last one is the most learnt.
    learnt = sorted(path.parent.glob(f"{prefix}-[0-9][0-9][0-9][0-9].params"))
    params = path if path.suffix == ".params" else next(reversed(learnt), None)
    if params is None or not symbol.is_file():
        raise InvalidArgument(
            f"an MXNet model is two files, {prefix}{SYMBOL_END} and {prefix}-0000.params; put them side by side",
            field="path",
        )
    shapes = {spec.name: spec.shape for signature in signatures for spec in signature.inputs}
    return _kept(mxnet.to_onnx(symbol, params, shapes))


def from_caffe(path: Path) -> Scratch:
    """The model of which `path` is the network or the weights.

    Raises:
        InvalidArgument: one of the two files is missing, or they are no model that can be turned.
        Unimplemented: the extra is not installed.
    """
    from sealane.importers import caffe

    return _kept(caffe.to_onnx(_other(path, ".prototxt"), _other(path, ".caffemodel")))


def _other(path: Path, suffix: str) -> Path:
    """The file of that suffix that belongs to `path`: of its name, or the only one beside it."""
    if path.suffix == suffix:
        return path
    if path.with_suffix(suffix).is_file():
        return path.with_suffix(suffix)
    found = sorted(path.parent.glob(f"*{suffix}"))
    if len(found) != 1:
        raise InvalidArgument(
            f"a Caffe model is two files, and beside {path.name} are {len(found)} {suffix} files; "
            f"put {path.with_suffix(suffix).name} there",
            field="path",
        )
    return found[0]


def _kept(content: bytes) -> Scratch:
    scratch = Scratch(ONNX_NAME)
    scratch.file.write_bytes(content)
    return scratch
