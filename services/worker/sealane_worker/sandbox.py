"""What a model process may still touch, from what is to be loaded."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

import sealane
import sealane_worker
from sealane.errors import InvalidArgument
from sealane_worker.model.confine import Policy
from sealane_worker.runtimes import RuntimeInfo
from sealane_worker.spec import HostPolicy, ModelSpec

#: Libraries that the runtimes of a system live among.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/cuda")
#: What frameworks look at to find their processors and their time zone.
_FACTS = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/usr/share/zoneinfo"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system"),
    "/proc/self/cmdline",  # TensorFlow ends without it
)
_NETWORK_FACTS = ("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_ACCELERATORS = ("/dev", "/proc/driver/nvidia", "/sys/bus/pci", "/sys/module/nvidia", "/sys/class/drm")
#: Descriptors beside the slots: libraries, weights, devices.
_OPEN_FILES = 256


def policy_for(spec: ModelSpec, info: RuntimeInfo, host: HostPolicy) -> Policy:
    """The sandbox of one model process."""
    accelerated = spec.serving.device != "cpu"
    read = [str(spec.path), *_FACTS]
    if accelerated:
        read += _ACCELERATORS[1:]
    if info.network:
        read += [*_NETWORK_FACTS, *_files(host)]
    return Policy(
        read=tuple(read),
        execute=_python_folders(host.pythons.get(info.name, "")),
        use=(*_DEVICES, *_accelerator_devices()) if accelerated else _DEVICES,
        network=info.network,
        ports=_ports(host) if info.network else (),
        open_files=_OPEN_FILES + 64,
    )


def _python_folders(python: str) -> tuple[str, ...]:
    """Folders that Python imports from: this one's, or those around another interpreter.

    Not all of ``sys.path``: whoever starts Python in a folder has it there, with everything below it.
    """
    folders = [sys.prefix, sys.base_prefix, *site.getsitepackages(), *_packages()]
    if python:
        real = Path(python).resolve()
        folders += [str(Path(python).absolute().parent.parent), str(real.parent.parent)]
    return tuple(dict.fromkeys([*_LIBRARIES, *(os.path.realpath(folder) for folder in folders)]))


def _packages() -> list[str]:
    """Where our own packages lie, which an editable installation has elsewhere, and what PYTHONPATH names."""
    named = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(folder).is_absolute()]
    return [*(str(Path(folder).parent) for folder in (*sealane.__path__, *sealane_worker.__path__)), *named]


def check_data_folder(folder: Path, host: HostPolicy) -> None:
    """Refuse a data folder that models could read: it holds the worker's keys.

    Raises:
        InvalidArgument: it lies in a folder that every model process may read.
    """
    real = os.path.realpath(folder)
    for python in ("", *host.pythons.values()):
        for readable in _python_folders(python):
            if os.path.commonpath([real, readable]) == readable:
                raise InvalidArgument(
                    f"the data folder {folder} lies in {readable}, which models may read for their libraries; "
                    "choose another folder",
                    reason="DATA_FOLDER_READABLE",
                )


def _accelerator_devices() -> tuple[str, ...]:
    found = [*Path("/dev").glob("nvidia*"), *Path("/dev").glob("dri/*"), *Path("/dev").glob("accel/*")]
    return tuple(str(path) for path in found)


def _endpoints(host: HostPolicy) -> list[str]:
    return [value for name, value in host.settings.items() if name.startswith("endpoint.")]


def _ports(host: HostPolicy) -> tuple[int, ...]:
    """Ports of the endpoints that the operator named, and the one of name servers."""
    ports = {int(port) for value in _endpoints(host) if (port := value.partition(",")[0].rpartition(":")[2]).isdigit()}
    return (53, *sorted(ports))


def _files(host: HostPolicy) -> list[str]:
    """Root certificates of the endpoints."""
    options = [option for value in _endpoints(host) for option in value.split(",")[1:]]
    return [option.removeprefix("ca=") for option in options if option.startswith("ca=")]
