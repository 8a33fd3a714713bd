"""Model runtimes: what a model process loads a model with. Finding out what is installed imports no framework.

A runtime is one module with a :class:`RuntimeInfo` and an entry point of the group ``sealane.runtimes`` that names it.
The module imports its framework when a model is loaded, never at its top.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sealane.errors import InvalidArgument, Unimplemented
from sealane.tensors import Array, Signature

GROUP = "sealane.runtimes"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How to run a model.

    Attributes:
        threads: processor threads for one inference.
        instances: threads that call :meth:`Runtime.run` at the same time.
        device: where to run, such as ``cpu`` or ``cuda``.
        settings: what the worker's operator says to this runtime, such as the endpoints behind it.
    """

    threads: int = 1
    instances: int = 1
    device: str = "cpu"
    settings: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """One loaded model."""

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Load the model at `path` (a file or a folder) and say what it takes and gives. Called once.

        Raises:
            FailedPrecondition: the files are not a model of this runtime (MODEL_UNREADABLE), one that it cannot
                serve (MODEL_SIGNATURES), or the device is not present here (DEVICE_NOT_PRESENT, naming what is).
        """
        ...

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """All outputs of one inference; `inputs` have been checked against the signature.

        Called from ``options.instances`` threads at the same time. Outputs must not be overwritten by later runs.

        Raises:
            InvalidArgument: the model refuses these inputs.
        """
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What is known of a runtime before it is imported.

    Attributes:
        name: as operators and manifests call it.
        formats: names of ``sealane.registry.v1.Format`` without the prefix that it loads; its own format first.
        package: the framework's import name; the runtime is installed where this can be found.
        distributions: names under which the framework is distributed, for its version.
        install: what to give to ``pip install``.
        create: makes one; called in a model process only.
        executable: formats of `formats` that hold code, loaded only where the worker allows it.
        network: whether it calls another server; its model process may then open connections.
        devices: finds the devices present here; called in the runtime's own process.
    """

    name: str
    formats: tuple[str, ...]
    package: str
    distributions: tuple[str, ...]
    install: str
    create: Callable[[], Runtime]
    executable: frozenset[str] = frozenset()
    network: bool = False
    devices: Callable[[], tuple[str, ...]] = lambda: ("cpu",)

    @property
    def installed(self) -> bool:
        """Whether its framework is there."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def version(self) -> str:
        """Version of the framework."""
        for distribution in self.distributions:
            try:
                return importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
        return "unknown"


def known_runtimes() -> dict[str, RuntimeInfo]:
    """Every runtime that an entry point names, installed or not, by name."""
    found = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            info = point.load()
        except (ImportError, AttributeError) as error:
            logger.warning("runtime %s cannot be imported: %s", point.name, error)
            continue
        if isinstance(info, RuntimeInfo):
            found[info.name] = info
    return dict(sorted(found.items()))


def entry_of(info: RuntimeInfo) -> str:
    """``module:attribute`` of a runtime's entry point, for a model process to import.

    Raises:
        InvalidArgument: no entry point names it.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == info.name:
            return point.value
    raise InvalidArgument(f"no entry point of {GROUP!r} is called {info.name!r}; name it as its runtime")


def installed_runtimes() -> dict[str, RuntimeInfo]:
    """The runtimes whose framework this installation has, by name."""
    return {name: info for name, info in known_runtimes().items() if info.installed}


def require_runtime(name: str, elsewhere: Collection[str] = ()) -> RuntimeInfo:
    """A runtime that is known and installed, without importing its framework.

    Args:
        name: its name.
        elsewhere: names of those that live in an environment of their own.

    Raises:
        InvalidArgument: no runtime has this name.
        Unimplemented: not installed; the message holds the command that installs it.
    """
    known = known_runtimes()
    if name not in known:
        raise InvalidArgument(
            f"runtime {name!r} is unknown; use one of {sorted(known)}", reason="RUNTIME_UNKNOWN", field="runtime"
        )
    if name not in elsewhere and not known[name].installed:
        raise Unimplemented(
            f"runtime {name!r} is not installed on this worker; run pip install {known[name].install!r}",
            reason="RUNTIME_NOT_INSTALLED",
            runtime=name,
        )
    return known[name]


def runtime_for(model_format: str, offered: Mapping[str, RuntimeInfo], wanted: str = "") -> RuntimeInfo:
    """The runtime that loads a format: the one wanted, else one whose own format it is, else any.

    Args:
        model_format: name of the format without prefix.
        offered: runtimes of this worker.
        wanted: name of the runtime that has to run it; empty for any.

    Raises:
        InvalidArgument: the runtime that is wanted does not load this format.
        Unimplemented: none here loads it; the message holds the command that installs one.
    """
    if wanted:
        info = offered.get(wanted) or require_runtime(wanted)
        if model_format not in info.formats:
            raise InvalidArgument(
                f"runtime {wanted!r} loads {', '.join(info.formats)}, not {model_format}; choose another",
                reason="RUNTIME_FORMAT",
                field="runtime",
            )
        if wanted in offered:
            return info
    able = [info for info in offered.values() if model_format in info.formats and wanted in ("", info.name)]
    if able:
        return min(able, key=lambda info: (info.formats.index(model_format) > 0, info.name))
    others = [info for info in known_runtimes().values() if model_format in info.formats and not info.installed]
    best = min(others, key=lambda info: (info.formats.index(model_format) > 0, info.name), default=None)
    hint = f"run pip install {best.install!r} there" if best else "allow one in the worker's settings"
    raise Unimplemented(
        f"this worker has no runtime for {model_format}, only {sorted(offered) or 'none'}; "
        f"{hint} or deploy another variant",
        reason="RUNTIME_NOT_INSTALLED",
        format=model_format,
    )


def create_runtime(name: str) -> Runtime:
    """Construct a runtime; its framework is imported when it loads a model.

    Raises:
        InvalidArgument: no runtime has this name.
        Unimplemented: not installed.
    """
    return require_runtime(name).create()
