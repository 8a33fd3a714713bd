"""What ASGI says about a request and wants to hear of an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence

from sealane.errors import InvalidArgument
from sealane.rpc.http_guests import Connection
from sealane.rpc.http_listener import CONNECTION

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

Scope = Mapping[str, object]
Send = Callable[[MutableMapping[str, object]], Awaitable[None]]


def headers_of(scope: Scope) -> tuple[dict[str, str], frozenset[str]]:
    """The headers by their names in lower case, and the names that were sent more than once."""
    found: dict[str, str] = {}
    duplicates: set[str] = set()
    pairs = scope["headers"]
    assert isinstance(pairs, Sequence)
    for key, value in pairs:
        name = key.decode("latin-1").lower()
        if name in found:
            duplicates.add(name)
        found[name] = value.decode("latin-1")
    return found, frozenset(duplicates)


def connection_of(scope: Scope) -> Connection:
    """The connection that a request came on."""
    state = scope["state"]
    assert isinstance(state, Mapping)
    found = state[CONNECTION]
    assert isinstance(found, Connection)
    return found


def timeout_of(headers: Mapping[str, str]) -> float:
    """Seconds that a caller gives, in the form of gRPC; for ever where it does not say.

    Raises:
        InvalidArgument: it says something else.
    """
    value = headers.get("grpc-timeout")
    if value is None:
        return math.inf
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise InvalidArgument(
            "grpc-timeout is no time; send digits and a unit, such as 500m for 500 ms", reason="MALFORMED_REQUEST"
        )
    return int(match[1]) * _SECONDS[match[2]]


def start(status: int, headers: Sequence[tuple[str, str]]) -> MutableMapping[str, object]:
    """The message that begins an answer."""
    coded = [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in headers]
    return {"type": "http.response.start", "status": status, "headers": coded}
