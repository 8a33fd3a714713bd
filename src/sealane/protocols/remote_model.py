"""The file ``remote.json``: a model behind another inference server.

::

    {"endpoint": "triton", "protocol": "oip", "model": "digits", "version": ""}

It names an endpoint, never an address: addresses are the worker's operator's, so that whoever may push a model cannot
make a worker call hosts of their choice (CWE-918).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sealane.errors import InvalidArgument

FILE_NAME = "remote.json"
MAX_BYTES = 64 * 1024
#: Open Inference Protocol, as Triton speaks it; TensorFlow Serving. Both over gRPC.
PROTOCOLS = ("oip", "tfserving")
_FIELDS = {"endpoint", "protocol", "model", "version"}


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What the file says.

    Attributes:
        endpoint: name that the worker's operator has given to a server.
        protocol: one of :data:`PROTOCOLS`.
        model: the model's name there.
        version: digits, or empty for the server's choice.
    """

    endpoint: str
    protocol: str
    model: str
    version: str = ""


def read(file: Path) -> RemoteModel:
    """What `file` says.

    Raises:
        InvalidArgument: not of that form.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError("too long")
        told = json.loads(file.read_bytes())
        if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
            raise ValueError("no texts")
        unknown = sorted(set(told) - _FIELDS)
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}")
        model = RemoteModel(**told)
        if not model.endpoint or not model.model or model.protocol not in PROTOCOLS:
            raise ValueError("a field is empty or unknown")
        if model.version and not (model.version.isascii() and model.version.isdigit()):
            raise ValueError("a version is a number")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(
            f"{FILE_NAME} does not describe a model; write endpoint, protocol ({' or '.join(PROTOCOLS)}), model and "
            "perhaps version, all as texts, and no address",
            reason="REMOTE_INVALID",
            field=FILE_NAME,
        ) from error
    return model
