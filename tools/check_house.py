"""Sizes and habits that no linter knows (CONTRIBUTING.md): module and function length, forbidden calls."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

MODULE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 5
#: Calls and imports that have no place in a service (SECURITY 3.11).
FORBIDDEN_IMPORTS = {"pickle", "dill", "joblib", "tarfile", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec"}
BROAD_EXCEPT = {  # the translators: of a listener, of what is said inside a seal, of the proxy, of a stream's inputs
    "src/sealane/client/proxy.py",
    "src/sealane/client/sealed_stream.py",
    "src/sealane/client/proxy_http.py",
    "services/worker/sealane_worker/sealed.py",
    "src/sealane/rpc/async_dispatch.py",
    "src/sealane/rpc/dispatch.py",
    "src/sealane/rpc/server.py",
    "src/sealane/records/database.py",
}


def python_files() -> list[Path]:
    """Hand-written modules of the library and the services."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "src/*.py", "services/*.py"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [Path(name) for name in listed if "_pb2" not in name and Path(name).exists()]


def long_rust_modules() -> list[str]:
    """Those of the native front that have more lines than a module may have."""
    lines = {path: len(path.read_text().splitlines()) for path in Path().glob("services/worker/native/src/**/*.rs")}
    return [f"{path}: {count} lines, at most {MODULE_LINES}" for path, count in lines.items() if count > MODULE_LINES]


def namesakes() -> list[str]:
    """Modules of the tests that have one name: each is imported by it alone, and the second would be the first."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "tests/*.py"], capture_output=True, text=True, check=True
    ).stdout.split()
    places: dict[str, list[str]] = {}
    for name in listed:
        if Path(name).exists() and Path(name).name not in ("conftest.py", "__init__.py"):
            places.setdefault(Path(name).name, []).append(name)
    return [f"{' and '.join(found)}: one name for several modules" for found in places.values() if len(found) > 1]


def problems_of(path: Path) -> list[str]:
    """Everything wrong with one module."""
    text = path.read_text()
    tree = ast.parse(text)
    found = []
    if len(text.splitlines()) > MODULE_LINES:
        found.append(f"{path}: {len(text.splitlines())} lines, at most {MODULE_LINES}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES}")
            positional = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            if len(positional) > PARAMETERS and not node.name.startswith("_"):
                found.append(f"{path}:{node.lineno}: {node.name} takes {len(positional)} positional parameters")
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            for name in {item.split(".")[0] for item in names} & FORBIDDEN_IMPORTS:
                found.append(f"{path}:{node.lineno}: imports {name}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"{path}:{node.lineno}: calls {node.func.id}")
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name):
            broad = node.type.id in ("Exception", "BaseException")
            if broad and str(path) not in BROAD_EXCEPT and "supervisor" not in text.splitlines()[node.lineno - 1]:
                found.append(f"{path}:{node.lineno}: catches {node.type.id}; name the errors")
    return found


def main() -> int:
    """Print problems; 1 where there are any."""
    problems = [problem for path in python_files() for problem in problems_of(path)]
    problems += long_rust_modules() + namesakes()
    print("\n".join(problems) or "house in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
