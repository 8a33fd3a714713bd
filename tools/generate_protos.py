"""Generate the Python code of every proto below protos/ into src/ (or into --out, to compare).

Runs in the code generator's own environment (requirements/codegen.lock): grpcio-tools 1.76 wants an
older protobuf than the services run on, and its output works on protobuf 6.31 to 7.x.
Servers are built from the descriptors (sealane.rpc.server), so that no generated code parses a body
before the caller is known; the generated stubs are for clients.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def main() -> int:
    """Generate all; the exit status is protoc's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "src")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    scripts = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{well_known}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *files,
        ]
    )
    for folder in {Path(name).parent for name in files}:
        (out / folder / "__init__.py").touch()
        for parent in folder.parents:
            if parent.name not in ("", "sealane"):
                (out / parent / "__init__.py").touch()
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
