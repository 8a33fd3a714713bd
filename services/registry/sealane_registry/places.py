"""Resource names of the registry, read."""

from __future__ import annotations

import re

from sealane.errors import InvalidArgument
from sealane.names import parse
from sealane_registry.rows import Scope

PROJECT = "projects/*"
MODEL, VERSION = "projects/*/models/*", "projects/*/models/*/versions/*"
VARIANT, ALIAS = "projects/*/models/*/versions/*/variants/*", "projects/*/models/*/aliases/*"
DATASET = "projects/*/datasets/*"
_DIGITS = re.compile(r"[0-9]{1,18}")


def version_scope(name: str, field: str = "name") -> Scope:
    """The place of a version named by its number."""
    project, model, number = parse(name, VERSION, field)
    return Scope(project, model, number_of(number, field))


def variant_scope(name: str, field: str = "name") -> Scope:
    """The place of a variant."""
    project, model, number, variant = parse(name, VARIANT, field)
    return Scope(project, model, number_of(number, field), variant)


def alias_scope(name: str, field: str = "name") -> Scope:
    """The place of an alias."""
    project, model, alias = parse(name, ALIAS, field)
    return Scope(project, model, name=alias)


def number_of(text: str, field: str = "parent") -> int:
    """The number of a version.

    Raises:
        InvalidArgument: it is none.
    """
    # More digits than the database has room for are no version's number either.
    if not _DIGITS.fullmatch(text):
        raise InvalidArgument(f"{field} names {text!r} where the number of a version must stand", field=field)
    return int(text)
