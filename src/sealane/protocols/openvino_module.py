"""OpenVINO, imported without its telemetry.

``import openvino`` makes a client id in the user's home and readies reports of use, through the package
``openvino_telemetry``; where that cannot be imported, OpenVINO uses a stub of its own that does nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def import_openvino() -> ModuleType:
    """The package; its first import in a process keeps telemetry out of it.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    # None in sys.modules is Python's own mark for "cannot be imported".
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")
