"""What this worker can load models with: its own runtimes, and those of other Python environments on this machine.

Frameworks disagree about their dependencies; a model process may run in an environment of its own.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sealane.errors import InvalidArgument
from sealane_worker.runtimes import RuntimeInfo, entry_of, installed_runtimes, known_runtimes

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 120.0
#: Where accelerators show; without one of them nothing but the processor needs to be looked for.
_ACCELERATORS = ("nvidia*", "dri/render*", "accel/*", "kfd")


@dataclass(frozen=True, slots=True)
class Offered:
    """A runtime that this worker offers.

    Attributes:
        info: what is known of it.
        version: version of its framework.
        formats: formats that this worker loads with it.
        devices: devices it runs on here.
    """

    info: RuntimeInfo
    version: str
    formats: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)


def offered(allowed: Sequence[str], pythons: Mapping[str, str], *, executable: bool) -> dict[str, Offered]:
    """The runtimes to offer, by name.

    Args:
        allowed: names; empty for all that are installed.
        pythons: runtime -> interpreter of an environment that has it.
        executable: whether formats that hold code are offered.

    Raises:
        InvalidArgument: an environment that is named has not the runtime it is named for.
    """
    known = known_runtimes()
    found = {name: Offered(info, info.version, info.formats) for name, info in installed_runtimes().items()}
    if accelerated():
        found |= _probed(sys.executable, {name: item.info for name, item in found.items()})
    for name, python in pythons.items():
        there = _probed(python, {name: known[name]} if name in known else {})
        if name not in there:
            raise InvalidArgument(
                f"SEALANE_WORKER_PYTHONS names {python} for runtime {name!r}, which is not installed there; "
                f"known are {sorted(known)}",
                reason="RUNTIME_NOT_INSTALLED",
            )
        found |= there
    formats = {
        name: tuple(item for item in offer.info.formats if executable or item not in offer.info.executable)
        for name, offer in found.items()
    }
    return {
        name: Offered(offer.info, offer.version, formats[name], offer.devices)
        for name, offer in sorted(found.items())
        if (not allowed or name in allowed) and formats[name]
    }


def accelerated() -> bool:
    """Whether this machine shows a device beside its processor."""
    return any(next(Path("/dev").glob(pattern), None) for pattern in _ACCELERATORS)


def _probed(python: str, infos: Mapping[str, RuntimeInfo]) -> dict[str, Offered]:
    """What an interpreter has of these, asked in a process of its own."""
    command = [python, "-P", "-m", "sealane_worker.runtimes", *(entry_of(info) for info in infos.values())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=True, text=True)
        answer = cast(dict[str, dict[str, object]], json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logger.warning("runtimes cannot be asked for", extra={"python": python, "error": type(error).__name__})
        return {}
    return {
        name: Offered(
            infos[name],
            str(told["version"]),
            infos[name].formats,
            tuple(str(device) for device in cast(list[object], told["devices"])),
        )
        for name, told in answer.items()
        if name in infos
    }
