"""What every client script shares: what it is asked to call, what it answers, and how its rows are run.

A script holds an adapter: the client's own calls behind the methods that the rows ask for. It runs in the client's
environment, so this module needs numpy alone.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

#: A tensor: its datatype in the words of the Open Inference Protocol, and its values.
Tensor = tuple[str, np.ndarray]
Row = Callable[[object], None]

NUMPY = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
#: Those that JSON and typed contents can hold, whatever the bytes.
TYPED = frozenset(NUMPY) - {"FP16", "BYTES"}
#: Statuses of the HTTP forms, as docs/http.md tells them.
HTTP = {
    "INVALID_ARGUMENT": "400",
    "FAILED_PRECONDITION": "400",
    "UNAUTHENTICATED": "401",
    "NOT_FOUND": "404",
    "DEADLINE_EXCEEDED": "504",
    "UNIMPLEMENTED": "501",
}


class Refused(Exception):
    """The server refused: a name of a gRPC code or a number of an HTTP status, and its text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


@dataclass(frozen=True)
class Site:
    """Where to call; see the fixture that writes it."""

    place: str
    grpc: str
    mesh: str
    http: str
    ca: str
    tls_name: str
    token: str
    certificate: str
    labels: Mapping[str, int]

    @property
    def trust(self) -> bytes:
        return Path(self.ca).read_bytes()

    def authorization(self, token: str) -> dict[str, str]:
        """The header for a good token, none, or one whose signature is wrong."""
        if token == "none":
            return {}
        told = self.token if token == "good" else self.token[:-8] + self.token[-8:][::-1]
        return {"authorization": f"Bearer {told}"}


@dataclass(frozen=True)
class Request:
    """One inference over the Open Inference Protocol.

    `sequence` is (id, start, end); `typed` asks for typed contents (JSON over HTTP) instead of raw ones (binary);
    `token` is good, bad or none; `cancel` leaves the call after so many seconds.
    """

    model: str
    inputs: Mapping[str, Tensor]
    version: str = ""
    outputs: tuple[str, ...] = ()
    classes: int = 0
    id: str = ""
    priority: int = 0
    timeout: int = 0
    sequence: tuple[int, bool, bool] | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    typed: bool = False
    seconds: float = 30.0
    coding: str = ""
    token: str = "good"
    cancel: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    model: str
    version: str
    id: str
    outputs: dict[str, np.ndarray]


def values(datatype: str) -> np.ndarray:
    """Two rows of two values that hold the bounds of a datatype."""
    if datatype == "BYTES":
        return np.array([[b"", b"text"], ["ä€".encode(), b"\x00\xff\xfe" * 100]], dtype=np.object_)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    if datatype == "BF16":
        return (
            np.array([[0.0, -1.5], [3.0e38, 1.0e-38]], dtype=np.float32)
            .view(np.uint32)
            .__and__(0xFFFF0000)
            .view(np.float32)
        )
    if datatype.startswith("FP"):
        bounds = np.finfo(NUMPY[datatype])
        return np.array([[0.0, -1.5], [bounds.max, bounds.tiny]], dtype=NUMPY[datatype])
    bounds = np.iinfo(NUMPY[datatype])
    return np.array([[0, 1], [bounds.max, bounds.min]], dtype=NUMPY[datatype])


def real(*rows: object) -> Tensor:
    """A tensor of FP32."""
    return "FP32", np.array(rows, dtype=np.float32)


def equal(found: object, wanted: object) -> None:
    """Raise where the two differ."""
    if isinstance(wanted, np.ndarray):
        array = np.asarray(found)
        if array.shape != wanted.shape or not np.array_equal(array, wanted):
            raise AssertionError(f"{array.tolist()} of shape {array.shape} instead of {wanted.tolist()}"[:600])
    elif found != wanted:
        raise AssertionError(f"{found!r} instead of {wanted!r}"[:600])


def refused(call: Callable[[], object], code: str, *texts: str) -> None:
    """Raise unless the call is refused with this code and these texts."""
    try:
        answer = call()
    except Refused as refusal:
        if refusal.code not in (code, HTTP.get(code)):
            raise AssertionError(f"{refusal} instead of {code}") from None
        for text in texts:
            if text.lower() not in refusal.text.lower():
                raise AssertionError(f"{refusal.text!r} does not say {text!r}") from None
        return
    raise AssertionError(f"answered {answer!r:.300} instead of {code}")


def run(rows: Mapping[str, Row], adapter: Callable[[Site], object]) -> int:
    """Run the rows that are asked for: `SCRIPT SITE.json row...`; prints one JSON object, row -> "ok" or the error."""
    site = Site(**json.loads(Path(sys.argv[1]).read_text()))
    client = adapter(site)
    results = {}
    for name in sys.argv[2:]:
        try:
            rows[name](client)
            results[name] = "ok"
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            results[name] = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"[:900]
    print(json.dumps(results))
    return 0
