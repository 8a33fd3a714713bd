"""`buf curl`, unmodified, with messages that it learns by reflection: one process for each call.

Usage: buf_curl.py SITE.json [--tfs] row...; BUF is the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import grpc
import rows_oip
import rows_tfs
from calling import Refused, Site, run
from json_client import OpenInference, TensorFlowServing

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Caller:
    """Runs it."""

    def __init__(self, site: Site) -> None:
        self._site = site

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
        (answer,), failure = self._run(f"{service}/{method}", [request], headers)
        if failure:
            raise failure
        return answer

    def stream(
        self, service: str, method: str, requests: list[dict], headers: dict[str, str]
    ) -> tuple[list[dict], Refused | None]:
        return self._run(f"{service}/{method}", requests, headers)

    def services(self, headers: dict[str, str]) -> list[str]:
        command = self._command("", headers, "--list-services")
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.split()

    @staticmethod
    def wrapped(number: int) -> object:
        """JSON of protobuf writes google.protobuf.Int64Value as its number."""
        return str(number)

    @staticmethod
    def signatures(content: dict) -> dict[str, dict]:
        """It knows the type of an Any by reflection."""
        return content["signatureDef"]

    def _command(self, path: str, headers: dict[str, str], *more: str) -> list[str]:
        told = [item for name, value in headers.items() for item in ("-H", f"{name}: {value}")]
        reflect = [f"--reflect-header={name}: {value}" for name, value in self._site.authorization("good").items()]
        at = f"https://{self._site.grpc}/{path}"
        return [os.environ["BUF"], "curl", "--protocol", "grpc", "--cacert", self._site.ca, *told, *reflect, *more, at]

    def _run(self, path: str, requests: list[dict], headers: dict[str, str]) -> tuple[list[dict], Refused | None]:
        body = "\n".join(map(json.dumps, requests))
        done = subprocess.run(
            self._command(path, headers, "-d", "@-"),
            input=body,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        failure = None
        if done.returncode >= 8:
            told = done.stderr.strip()
            with contextlib.suppress(ValueError, KeyError):
                told = json.loads(told)["message"]
            failure = Refused(_CODES[done.returncode >> 3], told)
        elif done.returncode:
            raise AssertionError(f"buf curl exits {done.returncode}: {done.stderr[:500]}")
        answers = _documents(done.stdout)
        return (answers or [{}]) if failure is None else (answers or ([{}] if len(requests) == 1 else [])), failure


def _documents(text: str) -> list[dict]:
    """The JSON documents that stand one after the other."""
    decoder, at, found = json.JSONDecoder(), 0, []
    text = text.strip()
    while at < len(text):
        document, end = decoder.raw_decode(text, at)
        found.append(document)
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found


def main() -> int:
    """Both protocols have a column of their own; --tfs asks for the second."""
    tfs = "--tfs" in sys.argv
    sys.argv = [item for item in sys.argv if item != "--tfs"]
    rows, adapter = (rows_tfs.ROWS, TensorFlowServing) if tfs else (rows_oip.ROWS, OpenInference)
    return run(rows, lambda site: adapter(site, Caller))


if __name__ == "__main__":
    sys.exit(main())
