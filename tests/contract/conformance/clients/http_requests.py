"""TensorFlow Serving's REST form, as scripts use it: the library `requests` and a header with the token."""

from __future__ import annotations

import base64
import gzip
import json
import sys
import zlib

import numpy as np
import requests
from calling import NUMPY, Refused, Site, run
from rows_tfs import ROWS, Predicted, Prediction


class Client:
    """Calls it as its users do."""

    rest = True

    def __init__(self, site: Site) -> None:
        self.site = site
        self._session = requests.Session()
        self._session.trust_env = False  # an environment that names other roots would win
        self._session.verify = site.ca

    def forms(self, datatype: str) -> tuple[str, ...]:
        return ("values", "rows")

    def predict(self, asked: Prediction) -> Predicted:
        inputs = {name: _plain(array) for name, (_, array) in asked.inputs.items()}
        body: dict[str, object] = {"signature_name": asked.signature} if asked.signature else {}
        if asked.form == "rows":
            body["instances"] = [dict(zip(inputs, line, strict=True)) for line in zip(*inputs.values(), strict=True)]
        else:
            body["inputs"] = inputs
        answer = self._call("POST", asked.model, ":predict", body, asked)
        ((_, (datatype, _)), *_) = asked.inputs.items()
        return Predicted(_arrays(answer, datatype if asked.model.startswith("echo") else "FP32", asked.model))

    def classify(self, model: str, signature: str, rows: list[list[float]]) -> list[list[tuple[str, float]]]:
        found = self._call("POST", model, ":classify", {"signature_name": signature, "examples": _features(rows)})
        return [[(label, score) for label, score in line] for line in found["results"]]

    def regress(self, model: str, signature: str, rows: list[list[float]]) -> list[float]:
        return self._call("POST", model, ":regress", {"signature_name": signature, "examples": _features(rows)})[
            "results"
        ]

    def metadata(self, model: str) -> dict[str, tuple[list[str], list[str]]]:
        found = self._call("GET", model, "/metadata")["metadata"]["signature_def"]["signature_def"]
        return {name: (sorted(it["inputs"]), sorted(it["outputs"])) for name, it in found.items()}

    def status(self, model: str, version: int = 0) -> dict[int, str]:
        found = self._call("GET", model, f"/versions/{version}" if version else "")["model_version_status"]
        return {int(item["version"]): item["state"] for item in found}

    def _call(
        self, verb: str, model: str, what: str, body: object = None, asked: Prediction | None = None
    ) -> dict[str, object]:
        at = f"https://{self.site.http}/v1/models/{model}"
        asked = asked or Prediction(model, {})
        if asked.version:
            at += f"/versions/{asked.version}"
        if asked.label:
            at += f"/labels/{asked.label}"
        headers = self.site.authorization(asked.token) | {"content-type": "application/json"}
        if asked.seconds < 1:
            headers["grpc-timeout"] = f"{int(asked.seconds * 1000)}m"
        content = json.dumps(body).encode() if body is not None else None
        if asked.coding:
            headers |= {"content-encoding": asked.coding, "accept-encoding": asked.coding}
            content = gzip.compress(content) if asked.coding == "gzip" else zlib.compress(content)
        try:
            timeout = asked.cancel or 30
            answer = self._session.request(verb, at + what, data=content, headers=headers, timeout=timeout)
        except requests.ReadTimeout:
            raise Refused("CANCELLED", "the client left") from None
        if answer.status_code != 200:
            raise Refused(str(answer.status_code), answer.json()["error"])
        return answer.json()


def _plain(array: np.ndarray) -> object:
    if array.dtype == np.object_:
        return [[{"b64": base64.b64encode(item).decode()} for item in line] for line in array.tolist()]
    return array.tolist()


def _features(rows: list[list[float]]) -> list[dict[str, list[float]]]:
    return [{"x": row} for row in rows]


def _arrays(answer: dict, datatype: str, model: str) -> dict[str, np.ndarray]:
    alone = {"chain": "again", "pixels": "mean"}.get(model, "y")
    if "predictions" in answer:
        rows = answer["predictions"]
        named = {name: [row[name] for row in rows] for name in rows[0]} if isinstance(rows[0], dict) else {alone: rows}
    else:
        columns = answer["outputs"]
        named = columns if isinstance(columns, dict) and "b64" not in columns else {alone: columns}
    return {name: _array(value, datatype) for name, value in named.items()}


def _array(value: object, datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        lines = [[base64.b64decode(it["b64"]) if isinstance(it, dict) else it.encode() for it in row] for row in value]
        return np.array(lines, dtype=np.object_)
    if datatype == "BF16":
        return np.array(value, dtype=np.float32)
    # Strings of classes come through another door; all else is numbers.
    return np.array(value, dtype=NUMPY[datatype] if not _texts(value) else np.object_)


def _texts(value: object) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, str)


if __name__ == "__main__":
    sys.exit(run(ROWS, Client))
