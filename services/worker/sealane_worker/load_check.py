"""Loads a model once in its box and says whether it can be served: ``python -m sealane_worker.load_check``.

The same process, sandbox and checks that serve it later; nothing of it is kept. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sealane.errors import SealaneError
from sealane.tensors import Signature
from sealane_worker.box import Box, BoxLimits
from sealane_worker.manifest import read_serving, read_warm_up
from sealane_worker.runtimes import RuntimeInfo, installed_runtimes, runtime_for
from sealane_worker.spec import HostPolicy, ModelSpec

#: The command line's longest load.
LOAD_SECONDS = 120.0

Accept = Callable[[tuple[Signature, ...]], None]


@dataclass(frozen=True, slots=True)
class LoadCheck:
    """What came of it.

    Attributes:
        loadable: whether it was loaded, ran on zeros where its shapes allow that, and answered its recorded requests.
        runtime: what it was loaded with.
        sandbox: level it ran at.
        load_seconds: time to load and to be warmed.
        memory_bytes: memory of its process.
        warmed_requests: recorded requests that it answered.
        signatures: names, datatypes and shapes that callers send and get.
        kind: of the failure, such as ``FAILED_PRECONDITION``; empty where it is loadable.
        reason: of the failure, for programs.
        message: what is wrong and what to do.
    """

    loadable: bool
    runtime: str = ""
    sandbox: str = ""
    load_seconds: float = 0.0
    memory_bytes: int = 0
    warmed_requests: int = 0
    signatures: tuple[dict[str, object], ...] = ()
    kind: str = ""
    reason: str = ""
    message: str = ""


def spec_of(
    path: Path,
    model_format: str,
    runtime: str = "",
    threads: int = 1,
    runtimes: Mapping[str, RuntimeInfo] | None = None,
) -> ModelSpec:
    """What to load for a model on disk, as a worker would.

    Args:
        path: the variant's folder, or its one file.
        model_format: name of ``sealane.registry.v1.Format`` without its prefix.
        runtime: runtime that has to run it; empty for any.
        threads: processor threads for one run where the variant does not say.
        runtimes: runtimes to choose from, by name; None for all that are installed here.

    Raises:
        Unimplemented: no runtime for it here.
        FailedPrecondition: its manifest or warm-up cannot be read.
    """
    info = runtime_for(model_format, installed_runtimes() if runtimes is None else runtimes, runtime)
    folder = path if path.is_dir() else path.parent
    return ModelSpec(info.name, path, threads, read_serving(folder), read_warm_up(folder))


def check(
    path: Path,
    model_format: str,
    runtime: str = "",
    policy: HostPolicy | None = None,
    *,
    runtimes: Mapping[str, RuntimeInfo] | None = None,
    accept: Accept = lambda signatures: None,
) -> LoadCheck:
    """Load it once, run it once, let it go.

    Args:
        path: as in :func:`spec_of`, and so are `model_format`, `runtime` and `runtimes`.
        model_format: see `path`.
        runtime: see `path`.
        policy: what the operator of this machine allows models.
        runtimes: see `path`.
        accept: looks at the signatures that it tells once it is loaded; raises SealaneError where they will not do.
    """
    try:
        spec = spec_of(path, model_format, runtime, runtimes=runtimes)
        box = Box.start(spec, BoxLimits(load=LOAD_SECONDS), policy)
    except SealaneError as error:
        return LoadCheck(False, kind=error.kind, reason=error.reason, message=error.message)
    try:
        loaded = LoadCheck(
            loadable=True,
            runtime=spec.runtime,
            sandbox=box.loaded.sandbox,
            load_seconds=round(box.loaded.load_seconds, 4),
            memory_bytes=box.footprint_bytes(),
            warmed_requests=box.loaded.warmed_requests,
            signatures=tuple(_told(signature) for signature in box.loaded.signatures),
        )
        try:
            accept(box.loaded.signatures)
        except SealaneError as error:
            return replace(loaded, loadable=False, kind=error.kind, reason=error.reason, message=error.message)
        return loaded
    finally:
        box.close()


def _told(signature: Signature) -> dict[str, object]:
    """What callers send and get; what it is for is read from the model itself."""
    fields = asdict(signature)
    del fields["method"]
    return fields


def main() -> int:
    """Command line; exits with 1 where the model cannot be loaded."""
    parser = argparse.ArgumentParser(prog="python -m sealane_worker.load_check", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--format", required=True, help="such as ONNX or SAVED_MODEL")
    parser.add_argument("--runtime", default="")
    parser.add_argument("--executable", action="store_true", help="allow formats and steps that hold code")
    wanted = parser.parse_args()
    found = check(wanted.path, wanted.format, wanted.runtime, HostPolicy(executable=wanted.executable))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0 if found.loadable else 1


if __name__ == "__main__":
    raise SystemExit(main())
