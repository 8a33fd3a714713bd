"""Model runtimes: what a model process loads a model with. Finding out what is installed imports none of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sealane.errors import InvalidArgument, Unimplemented
from sealane.tensors import Array, Signature


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How to run a model.

    Attributes:
        threads: processor threads for one inference.
    """

    threads: int = 1


class Runtime(Protocol):
    """One loaded model. Used by one thread."""

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Load the model at `path` (a file or a folder) and say what it takes and gives.

        Raises:
            FailedPrecondition: the files are not a model of this runtime, or one that it cannot serve.
        """
        ...

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """All outputs of one inference; `inputs` have been checked against the signature.

        Raises:
            InvalidArgument: the model refuses these inputs.
        """
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


@dataclass(frozen=True, slots=True)
class _Known:
    package: str
    distributions: tuple[str, ...]
    extra: str


_KNOWN = {
    "litert": _Known("ai_edge_litert", ("ai-edge-litert",), "litert"),
    "tensorflow": _Known("tensorflow", ("tensorflow", "tensorflow-cpu"), "tensorflow"),
}


def installed_runtimes() -> dict[str, str]:
    """Runtime name -> version of those that this installation can start."""
    found = {}
    for name, known in _KNOWN.items():
        if importlib.util.find_spec(known.package) is not None:
            found[name] = _version(known.distributions)
    return found


def _version(distributions: tuple[str, ...]) -> str:
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def require_runtime(name: str) -> None:
    """Refuse a runtime that is unknown or not installed, without importing it.

    Raises:
        InvalidArgument: no runtime has this name.
        Unimplemented: not installed; the message holds the command that installs it.
    """
    known = _KNOWN.get(name)
    if known is None:
        raise InvalidArgument(
            f"runtime {name!r} is unknown; use one of {sorted(_KNOWN)}", reason="RUNTIME_UNKNOWN", field="runtime"
        )
    if importlib.util.find_spec(known.package) is None:
        raise Unimplemented(
            f"runtime {name!r} is not installed on this worker; run pip install 'sealane[{known.extra}]'",
            reason="RUNTIME_NOT_INSTALLED",
            runtime=name,
        )


def create_runtime(name: str) -> Runtime:
    """Import and construct a runtime; only model processes call this.

    Raises:
        InvalidArgument: no runtime has this name.
        Unimplemented: not installed.
    """
    require_runtime(name)
    if name == "litert":
        from sealane_worker.runtimes.litert import LiteRtRuntime

        return LiteRtRuntime()
    from sealane_worker.runtimes.tensorflow import TensorFlowRuntime

    return TensorFlowRuntime()
