"""Resource names: ``projects/{project}/models/{model}/versions/{number}`` and their like (AIP-122)."""

from __future__ import annotations

import re

from sealane.errors import InvalidArgument

_ID = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_LABEL = re.compile(r"[a-z][a-z0-9-]{0,62}")


def parse(name: str, pattern: str, field: str = "name") -> tuple[str, ...]:
    """The variable parts of `name`, which must look like `pattern` (``projects/*/models/*``).

    Raises:
        InvalidArgument: it does not.
    """
    parts, wanted = name.split("/"), pattern.split("/")
    fits = len(parts) == len(wanted) and all(
        part if want == "*" else part == want for part, want in zip(parts, wanted, strict=True)
    )
    if not fits:
        raise InvalidArgument(f"{field} {name!r} does not look like {pattern}; check the name", field=field)
    return tuple(part for part, want in zip(parts, wanted, strict=True) if want == "*")


def check_id(value: str, field: str, *, label: bool = False) -> str:
    """An id chosen by a caller; `label` allows what DNS allows alone.

    Raises:
        InvalidArgument: other characters, or too long.
    """
    pattern = _LABEL if label else _ID
    if not pattern.fullmatch(value):
        allowed = "a-z 0-9 -" if label else "a-z 0-9 - _ ."
        raise InvalidArgument(
            f"{field} {value!r} is not acceptable; use 1 to 63 of {allowed}, starting with a letter", field=field
        )
    return value
