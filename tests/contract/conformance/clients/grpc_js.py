"""@grpc/grpc-js and @grpc/proto-loader, unmodified, with messages that they learn by reflection.

Usage: grpc_js.py SITE.json row...; NODE is the program, NODE_PATH names its packages. `--tfs` asks for TensorFlow
Serving's rows.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import rows_oip
import rows_tfs
from calling import Refused, Site, run
from json_client import OpenInference, TensorFlowServing

#: tensorflow.serving.SignatureDefMap, as far as the rows look: field 1 is a map to inputs (1) and outputs (2).
_INPUTS, _OUTPUTS = 1, 2
#: Maps: with messages from a set of descriptors, this client takes and gives them as lists of entries.
_MAPS = frozenset({"parameters", "inputs", "outputs", "feature", "version_labels", "metadata"})


class Caller:
    """A process of node that makes the calls."""

    def __init__(self, site: Site) -> None:
        script = Path(__file__).with_suffix(".js")
        command = [os.environ["NODE"], str(script), sys.argv[1]]
        self._node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(
        self,
        service: str,
        method: str,
        request: dict,
        headers: dict[str, str],
        seconds: float = 30.0,
        coding: str = "",
        cancel: float = 0.0,
    ) -> dict:
        told = {"service": service, "method": method, "request": _entries(request), "metadata": headers}
        return _maps(self._ask(told | {"seconds": seconds, "coding": coding, "cancel": cancel})["answer"])

    def stream(
        self, service: str, method: str, requests: list[dict], headers: dict[str, str]
    ) -> tuple[list[dict], Refused | None]:
        told = {"service": service, "method": method, "metadata": headers, "seconds": 30}
        found = self._asked(told | {"requests": [_entries(request) for request in requests]})
        return _maps(found.get("answers", [])), Refused(found["code"], found["text"]) if "code" in found else None

    def services(self, headers: dict[str, str]) -> list[str]:
        return self._ask({"services": True, "metadata": headers})["answer"]

    @staticmethod
    def wrapped(number: int) -> object:
        """google.protobuf.Int64Value is a message like others here."""
        return {"value": str(number)}

    @staticmethod
    def signatures(content: dict) -> dict[str, dict]:
        """The content of an Any, whose type this client does not know."""
        raw = base64.b64decode(content["value"])
        found = {}
        for entry in _fields(raw).get(1, []):
            parts = _fields(entry)
            sides = _fields(parts[2][0])
            inputs, outputs = (
                [_fields(item)[1][0].decode() for item in sides.get(number, [])] for number in (_INPUTS, _OUTPUTS)
            )
            found[parts[1][0].decode()] = {"inputs": inputs, "outputs": outputs}
        return found

    def _ask(self, told: dict) -> dict:
        found = self._asked(told)
        if "code" in found:
            raise Refused(found["code"], found["text"])
        return found

    def _asked(self, told: dict) -> dict:
        self._node.stdin.write(json.dumps(told) + "\n")
        self._node.stdin.flush()
        return json.loads(self._node.stdout.readline())

    def close(self) -> None:
        self._node.stdin.close()
        self._node.wait(timeout=20)


def _entries(value: object, name: str = "") -> object:
    """Maps as lists of entries."""
    if isinstance(value, list):
        return [_entries(item) for item in value]
    if not isinstance(value, dict):
        return value
    if name in _MAPS:
        return [{"key": key, "value": _entries(item)} for key, item in value.items()]
    return {key: _entries(item, key) for key, item in value.items()}


def _maps(value: object) -> object:
    """Lists of entries as maps."""
    if isinstance(value, dict):
        return {key: _maps(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if value and all(isinstance(item, dict) and "key" in item and set(item) <= {"key", "value"} for item in value):
        return {item["key"]: _maps(item.get("value")) for item in value}
    return [_maps(item) for item in value]


def _fields(raw: bytes) -> dict[int, list[bytes]]:
    """The length-delimited fields of a message."""
    found: dict[int, list[bytes]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(raw):
        tag = number()
        size = number()
        if tag & 7 == 2:
            found.setdefault(tag >> 3, []).append(raw[at : at + size])
            at += size
    return found


def main() -> int:
    """Both protocols have a column of their own; --tfs asks for the second."""
    callers = []

    def caller(site: Site) -> Caller:
        callers.append(Caller(site))
        return callers[-1]

    tfs = "--tfs" in sys.argv
    sys.argv = [item for item in sys.argv if item != "--tfs"]
    rows, adapter = (rows_tfs.ROWS, TensorFlowServing) if tfs else (rows_oip.ROWS, OpenInference)
    try:
        return run(rows, lambda site: adapter(site, caller))
    finally:
        for made in callers:
            made.close()


if __name__ == "__main__":
    sys.exit(main())
