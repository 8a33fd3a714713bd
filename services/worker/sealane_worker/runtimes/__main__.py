"""Tells what this interpreter can load models with: ``python -m sealane_worker.runtimes MODULE:ATTRIBUTE...``.

Prints one JSON object: name -> version and devices, of those that are installed. Finding the devices imports the
framework, which a worker's front never does itself.
"""

from __future__ import annotations

import importlib
import json
import sys

from sealane_worker.runtimes import RuntimeInfo


def main() -> int:
    """Command line: entry points of runtimes."""
    found = {}
    for entry in sys.argv[1:]:
        module, _, attribute = entry.partition(":")
        info = getattr(importlib.import_module(module), attribute)
        if isinstance(info, RuntimeInfo) and info.installed:
            found[info.name] = {"version": info.version, "devices": list(info.devices())}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
