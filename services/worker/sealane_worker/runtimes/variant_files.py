"""What every runtime asks of a variant's folder and of its device. Imports no framework."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path

from sealane.errors import FailedPrecondition
from sealane.protocols.call import DEFAULT_SIGNATURE

__all__ = ["DEFAULT_SIGNATURE", "NO_FOLDER", "only_file", "require_device", "settle_folders", "unreadable", "unserved"]

#: A place where no folder can be.
NO_FOLDER = f"{os.devnull}/none"


def only_file(path: Path, kind: str, *suffixes: str) -> Path:
    """The model's file: `path` itself, or the only one of its folder with one of `suffixes`.

    Raises:
        FailedPrecondition: none, or several of them (MODEL_UNREADABLE).
    """
    if path.is_file():
        return path
    # Not below: a folder beside the model is the variant's own package.
    found = sorted(file for suffix in suffixes for file in path.glob(f"*{suffix}"))
    if len(found) != 1:
        raise FailedPrecondition(
            f"{kind} variant holds exactly one {' or '.join(suffixes)} file, this one has {len(found)}; push it again",
            reason="MODEL_UNREADABLE",
        )
    return found[0]


def require_device(wanted: str, present: Collection[str], framework: str) -> None:
    """Refuse a device that is not there.

    Raises:
        FailedPrecondition: `wanted` is not among `present` (DEVICE_NOT_PRESENT).
    """
    if wanted not in present:
        raise FailedPrecondition(
            f"device {wanted!r} is not present here, {framework} finds {sorted(present)}; "
            "deploy to a worker that has it or name another device",
            reason="DEVICE_NOT_PRESENT",
        )


def unreadable(what: str, again: str) -> FailedPrecondition:
    """The error for files that are no model of a runtime; `again` says how to make them anew.

    What the framework says stays in the log: it quotes paths and bytes of the file.
    """
    return FailedPrecondition(
        f"the variant is not {what} that this runtime can load; {again}", reason="MODEL_UNREADABLE"
    )


def unserved(tensor: str, problem: str, again: str) -> FailedPrecondition:
    """The error for an input or output that no protocol carries."""
    return FailedPrecondition(f"tensor {tensor!r} {problem}; {again}", reason="MODEL_SIGNATURES")


def settle_folders() -> None:
    """Let a framework be imported where nothing may be written and no program started.

    Some ask for a temporary folder and never use it; some look for a compiler to find their libraries with, and would
    write for it.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = os.sep
        os.environ["PATH"] = NO_FOLDER
