"""PyTorch: programs of ``torch.export`` (``.pt2``) and TorchScript archives (``.pt``).

Both formats hold code. A TorchScript archive is a program by design; loading a ``.pt2`` file evaluates expressions and
guards out of it as Python (``torch.export._unlift``, ``torch._export.serde``). So both are executable formats, which a
worker runs only where its operator allows them, and in the sandbox.

An archive of TorchScript does not tell shapes: a file ``signatures.json`` beside it does, which push writes.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from sealane.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from sealane.protocols import framework_types
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec
from sealane_worker.runtimes import RuntimeInfo, RuntimeOptions
from sealane_worker.runtimes.variant_files import (
    DEFAULT_SIGNATURE,
    only_file,
    require_device,
    settle_folders,
    unreadable,
    unserved,
)

if TYPE_CHECKING:
    import torch

SIGNATURES_FILE = "signatures.json"
MAX_SIGNATURES_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Program:
    """A loaded model: its signature, and what gives its outputs for tensors in the signature's order."""

    signature: Signature
    call: Callable[[Sequence[torch.Tensor]], object]


def devices() -> tuple[str, ...]:
    """Devices that torch finds, such as ``cpu`` and ``cuda``."""
    import torch

    found = ["cpu"]
    if torch.cuda.is_available():
        # A build for AMD cards calls them cuda too.
        found.append("rocm" if torch.version.hip else "cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return tuple(sorted(found))


class TorchRuntime:
    """Runs one exported program or one TorchScript module."""

    def __init__(self) -> None:
        self._program: _Program | None = None
        self._device = "cpu"
        self._threads = 1
        self._mine = threading.local()

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Load the program; see :class:`sealane_worker.runtimes.Runtime`."""
        # Tensors only: nothing in an archive is unpickled into anything else, whatever the loader asks for.
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        settle_folders()
        # Nothing is compiled here, but importing torch makes the folder for it.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
        import torch

        require_device(options.device, devices(), "PyTorch")
        self._device = "cuda" if options.device == "rocm" else options.device
        self._threads = options.threads
        torch.set_num_threads(options.threads)
        file = only_file(path, "a PyTorch", ".pt2", ".pt", ".pth")
        open_ = _open_program if file.suffix == ".pt2" else _open_script
        self._program = open_(file, self._device)
        return (self._program.signature,)

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """One inference; see :class:`sealane_worker.runtimes.Runtime`."""
        import torch

        if self._program is None:
            raise FailedPrecondition("the model is closed; load it again")
        self._settle()
        signature = self._program.signature
        try:
            with torch.inference_mode():
                tensors = [_to_torch(inputs[spec.name]).to(self._device) for spec in signature.inputs]
                outputs = _named(self._program.call(tensors))
                return {spec.name: _to_numpy(outputs[spec.name]) for spec in signature.outputs}
        except torch.OutOfMemoryError as error:
            raise ResourceExhausted("the device has no memory left for these inputs; send fewer rows a call") from error
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise InvalidArgument(
                f"the model refuses these inputs: {_first_line(error)}; check shapes against its metadata",
                reason="MODEL_REFUSED_INPUTS",
                field="inputs",
            ) from error

    def close(self) -> None:
        """Let go of the model."""
        self._program = None

    def _settle(self) -> None:
        """The number of threads holds for the thread that set it, with OpenMP at least."""
        if not getattr(self._mine, "settled", False):
            import torch

            torch.set_num_threads(self._threads)
            self._mine.settled = True


RUNTIME = RuntimeInfo(
    name="torch",
    formats=("TORCH_EXPORT", "TORCH_SCRIPT"),
    package="torch",
    distributions=("torch",),
    install="sealane[torch]",
    create=TorchRuntime,
    executable=frozenset({"TORCH_EXPORT", "TORCH_SCRIPT"}),
    devices=devices,
)


def _open_program(file: Path, device: str) -> _Program:
    import torch
    from torch.export.passes import move_to_device_pass
    from torch.utils import _pytree as pytree

    # What torch raises for an object in the archive that is no tensor.
    refused = torch.serialization.pickle.UnpicklingError
    try:
        exported = torch.export.load(str(file))
        if device != "cpu":
            exported = move_to_device_pass(exported, device)
        module = exported.module()
    except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError, zipfile.BadZipFile, refused) as error:
        raise unreadable("a program", "write it with torch.export.save") from error
    takes = [spec.arg for spec in exported.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    told = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    inputs = {item.name: told[item.name] for item in takes if isinstance(told.get(item.name), torch.Tensor)}
    outputs = _named(pytree.tree_unflatten(_given(exported), exported.call_spec.out_spec))

    def call(tensors: Sequence[torch.Tensor]) -> object:
        given = dict(zip(inputs, tensors, strict=True))
        # Arguments that were no tensors at the export are part of the program: they are passed as they were.
        flat = [given[item.name] if item.name in given else getattr(item, "value", None) for item in takes]
        arguments, keywords = pytree.tree_unflatten(flat, exported.call_spec.in_spec)
        return module(*arguments, **keywords)

    return _Program(Signature(_specs(inputs), _specs(outputs), DEFAULT_SIGNATURE), call)


def _given(exported: torch.export.ExportedProgram) -> list[object]:
    """Stand-ins for what the program returns, in the order of its flattened outputs."""
    gives = next(node for node in exported.graph.nodes if node.op == "output").args[0]
    specs = exported.graph_signature.output_specs
    return [
        node.meta.get("val") if hasattr(node, "meta") else node
        for node, spec in zip(gives, specs, strict=True)
        if spec.kind.name == "USER_OUTPUT"
    ]


def _open_script(file: Path, device: str) -> _Program:
    import torch

    signature = _told_signature(file.parent / SIGNATURES_FILE)
    try:
        with warnings.catch_warnings():
            # TorchScript is on its way out; whoever serves it knows.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise unreadable("a TorchScript archive", "write it with torch.jit.save") from error

    def call(tensors: Sequence[torch.Tensor]) -> object:
        return module(*tensors)

    return _Program(signature, call)


def _told_signature(file: Path) -> Signature:
    """The signature that push wrote beside an archive (ProtoJSON: 64-bit numbers may be texts)."""
    if not file.is_file():
        raise FailedPrecondition(
            f"TorchScript does not tell what it takes and there is no {SIGNATURES_FILE} beside it; "
            "push it with signatures, or export it with torch.export",
            reason="MODEL_SIGNATURES",
        )
    try:
        if file.stat().st_size > MAX_SIGNATURES_BYTES:
            raise ValueError("too long")
        (told,) = json.loads(file.read_bytes())["signatures"]
        both = [
            tuple(
                TensorSpec(str(spec["name"]), str(spec["datatype"]), tuple(int(size) for size in spec.get("shape", ())))
                for spec in told[side]
            )
            for side in ("inputs", "outputs")
        ]
        if not {spec.datatype for side in both for spec in side} <= NUMPY_OF.keys():
            raise ValueError("unknown datatype")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPrecondition(
            f"{SIGNATURES_FILE} does not hold one signature; push the model again", reason="MODEL_SIGNATURES"
        ) from error
    return Signature(both[0], both[1], str(told.get("name") or DEFAULT_SIGNATURE))


def _named(outputs: object) -> dict[str, torch.Tensor]:
    """Outputs by name: keys of a dictionary, else ``output_0`` and so on, as Keras names them."""
    if isinstance(outputs, Mapping):
        return {str(name): tensor for name, tensor in outputs.items()}
    listed = outputs if isinstance(outputs, tuple | list) else [outputs]
    return {f"output_{place}": tensor for place, tensor in enumerate(listed)}


def _specs(tensors: Mapping[str, torch.Tensor]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, tensor in tensors.items():
        kind = str(getattr(tensor, "dtype", type(tensor).__name__))
        if kind not in framework_types.TORCH:
            raise unserved(
                name, f"is {kind}, which no protocol carries", "export a program that takes and gives tensors"
            )
        shape = tuple(size if type(size) is int else -1 for size in tensor.shape)
        specs.append(TensorSpec(name, framework_types.TORCH[kind], shape))
    return tuple(specs)


def _to_torch(array: Array) -> torch.Tensor:
    import torch

    if array.dtype == NUMPY_OF["BF16"]:
        return torch.tensor(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    # A copy: a program may write to its inputs, or give them back.
    return torch.tensor(np.ascontiguousarray(array))


def _to_numpy(tensor: torch.Tensor) -> Array:
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return cast(Array, tensor.view(torch.int16).numpy()).view(NUMPY_OF["BF16"])
    return cast(Array, tensor.numpy())


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
