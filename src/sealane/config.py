"""Configuration from the environment: one frozen dataclass per service, read once.

A field ``join_token`` of a service with prefix ``SEALANE_WORKER_`` is read from
``SEALANE_WORKER_JOIN_TOKEN``. An unknown variable with the prefix stops the start.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from sealane.errors import InvalidArgument


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: typing.ClassVar[dict[str, dataclasses.Field[object]]]


T = TypeVar("T", bound=Dataclass)


def read(kind: type[T], prefix: str, environment: Mapping[str, str]) -> T:
    """An instance of the dataclass `kind` from variables that start with `prefix`.

    Raises:
        InvalidArgument: an unknown, missing or malformed variable, named in the message.
    """
    hints = typing.get_type_hints(kind)
    fields = {prefix + field.name.upper(): field for field in dataclasses.fields(kind)}
    present = {name: value for name, value in environment.items() if name.startswith(prefix)}
    for name in sorted(present.keys() - fields.keys()):
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(fields))}"
        raise InvalidArgument(f"unknown setting {name}; {hint}", reason="UNKNOWN_SETTING")
    values: dict[str, object] = {}
    for name, field in fields.items():
        if name in present:
            values[field.name] = _convert(name, present[name], hints[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidArgument(f"{name} is not set; it has no default", reason="MISSING_SETTING")
    return kind(**values)


def _convert(name: str, text: str, hint: object) -> object:
    if isinstance(hint, types.UnionType):
        if text == "":
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not types.NoneType)
    try:
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if hint is int:
            return int(text)
        if hint is float:
            return float(text)
    except (KeyError, ValueError) as error:
        raise InvalidArgument(f"{name}={text!r} is no {getattr(hint, '__name__', hint)}") from error
    if hint is Path:
        return Path(text)
    if typing.get_origin(hint) is tuple:
        return tuple(part for part in text.split(",") if part)
    return text
