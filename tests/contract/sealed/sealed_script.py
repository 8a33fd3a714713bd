"""The functions of `sealed_reader` as client.mjs has them, in a process of Node."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from sealed_parties import ROOT
from sealed_reader import Keys, Token, Worker

from sealane.inference.v1.sealed_inference_service_pb2 import SealedInferRequest, SealedInferResponse, SessionPlace

NODE, PACKAGES = ROOT / ".venv-node/bin/node", ROOT / ".venv-node/node_modules"
#: Why it cannot be run here; empty where it can.
MISSING = ", ".join(
    str(path.relative_to(ROOT))
    for path in (NODE, PACKAGES / "@hpke/core", PACKAGES / "@hpke/hybridkem-x-wing")
    if not path.exists()
)
Json = dict[str, Any]


class Refused(ValueError):
    """The script does not take what it was given."""


class Script:
    """client.mjs."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("client.mjs")
        environment = os.environ | {"NODE_PATH": str(PACKAGES)}
        command = [str(NODE), str(script)]
        self._node = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def close(self) -> None:
        """End it."""
        self._node.communicate(timeout=10)
        assert self._node.returncode == 0

    def seal_request(
        self,
        message: SealedInferRequest,
        token: Token,
        sender: Ed25519PrivateKey,
        workers: list[Worker],
        plaintext: bytes | None,
    ) -> dict[str, Keys]:
        found = self._call(
            "sealRequest",
            message=_json(message),
            token=asdict(token),
            sender=_text(sender.private_bytes_raw()),
            workers=[_worker(worker, secret=False) for worker in workers],
            plaintext=None if plaintext is None else _text(plaintext),
        )
        ParseDict(found["message"], message)
        return {told["key_id"]: _keys(told) for told in found["keys"]}

    def open_request(
        self, message: SealedInferRequest, token: Token, jkt: str, worker: Worker
    ) -> tuple[Keys, bytes | None]:
        told = {"message": _json(message), "token": asdict(token), "jkt": jkt}
        found = self._call("openRequest", **told, worker=_worker(worker, secret=True))
        plaintext = None if found["plaintext"] is None else base64.b64decode(found["plaintext"])
        return _keys(found["keys"]), plaintext

    def seal_answer(self, keys: Keys, plaintext: bytes) -> SealedInferResponse:
        found = self._call("sealAnswer", keys=_told(keys), plaintext=_text(plaintext))
        return ParseDict(found, SealedInferResponse())

    def open_answer(self, sent: dict[str, Keys], answer: SealedInferResponse) -> bytes:
        found = self._call("openAnswer", keys=[_told(keys) for keys in sent.values()], answer=_json(answer))
        return base64.b64decode(found)

    def seal_in_session(
        self,
        message: SealedInferRequest,
        token: Token,
        secret: bytes,
        place: SessionPlace,
        variant: str,
        plaintext: bytes,
    ) -> dict[str, Keys]:
        told = {"message": _json(message), "token": asdict(token), "secret": _text(secret), "variant": variant}
        found = self._call("sealInSession", **told, place=_json(place), plaintext=_text(plaintext))
        ParseDict(found["message"], message)
        return {told["key_id"]: _keys(told) for told in found["keys"]}

    def open_in_session(
        self, message: SealedInferRequest, token: Token, secret: bytes, variant: str
    ) -> tuple[Keys, bytes]:
        told = {"message": _json(message), "token": asdict(token), "secret": _text(secret), "variant": variant}
        found = self._call("openInSession", **told)
        return _keys(found["keys"]), base64.b64decode(found["plaintext"])

    def _call(self, name: str, **told: Any) -> Any:
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(json.dumps({"call": name, **told}) + "\n")
        self._node.stdin.flush()
        line = self._node.stdout.readline()
        found = json.loads(line) if line else {"error": "the script ended"}
        if "refused" in found:
            raise Refused(found["refused"])
        if "error" in found:
            raise RuntimeError(found["error"])
        return found["result"]


def _json(message: Message) -> Json:
    """As protobuf's JSON, with names as in the contract, enums as numbers, and what has its default value."""
    return MessageToDict(
        message,
        preserving_proto_field_name=True,
        use_integers_for_enums=True,
        always_print_fields_with_no_presence=True,
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _worker(worker: Worker, *, secret: bool) -> Json:
    told = {"suite": worker.suite, "public": _text(worker.public), "variant": worker.variant}
    return told | ({"private": _text(worker.private)} if secret else {})


def _told(keys: Keys) -> Json:
    told = asdict(keys)
    return {name: _text(value) if isinstance(value, bytes) else value for name, value in told.items()}


def _keys(told: Json) -> Keys:
    secrets = (base64.b64decode(told[name]) for name in ("bound", "data_key", "response_secret"))
    return Keys(told["key_id"], *secrets, counter=told["counter"])
