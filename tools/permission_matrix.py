"""Writes the matrix of roles and methods, from the contracts, into docs/permissions.md.

With `--check` it only says whether the page is what the contracts say.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

from google.protobuf.descriptor import MethodDescriptor

import sealane
from sealane.rpc.policy import PUBLIC
from sealane.security.permissions import MODEL_PERMISSIONS, PLATFORM_ROLES, ROLES
from sealane.type.v1 import access_pb2

PAGE = Path(__file__).resolve().parent.parent / "docs" / "permissions.md"
BEGIN, END = "<!-- matrix -->", "<!-- end -->"
ORDER = ("viewer", "invoker", "publisher", "deployer", "operator", "auditor", "admin")
RISKS = {access_pb2.RISK_LOW: "low", access_pb2.RISK_MEDIUM: "medium", access_pb2.RISK_HIGH: "high"}


def methods() -> list[MethodDescriptor]:
    """Every method of every contract."""
    found = []
    for module in pkgutil.walk_packages(sealane.__path__, "sealane."):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(module.name).DESCRIPTOR
            found += [method for service in file.services_by_name.values() for method in service.methods]
    return sorted(found, key=lambda method: method.full_name)


def cell(role: str, permission: str) -> str:
    """What a role gives: `x`; `m` where a binding can limit it to models; `p` where it takes a platform binding."""
    if permission in ROLES[role]:
        return "m" if permission in MODEL_PERMISSIONS and role not in ("operator", "auditor", "admin") else "x"
    return "p" if permission in PLATFORM_ROLES.get(role, ()) else ""


def matrix() -> str:
    """The table."""
    lines = [
        "| method | permission | " + " | ".join(ORDER) + " | peers | risk |",
        "|---|---|" + "---|" * len(ORDER) + "---|---|",
    ]
    for method in methods():
        rule = method.GetOptions().Extensions[access_pb2.access]
        name = method.full_name.removeprefix("sealane.").replace(".v1.", ".").replace(".v2.", ".")
        if rule.permission == PUBLIC:
            cells = ["everybody"] + [""] * (len(ORDER) - 1)
        else:
            cells = [cell(role, rule.permission) for role in ORDER]
        permission = "none needed" if rule.permission == PUBLIC else rule.permission or "peers only"
        peers = " ".join(rule.callers)
        lines.append(f"| `{name}` | {permission} | {' | '.join(cells)} | {peers} | {RISKS[rule.risk]} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Write or check."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n\n{matrix()}\n\n{END}{after}"
    if "--check" in arguments:
        if text != wanted:
            print("docs/permissions.md is not what the contracts say; run tools/permission_matrix.py")
            return 1
        return 0
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
