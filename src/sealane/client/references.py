"""Short names that people type, as the resource names that the contracts want.

A reference is short (``digits``, ``digits@production``, ``digits@3/litert-int8``) or already a full name
(``projects/...``), which is taken as it is.
"""

from __future__ import annotations

from sealane.errors import InvalidArgument


def resource(project: str, collection: str, reference: str) -> str:
    """A resource right below the project: ``digits`` in ``models`` is ``projects/p/models/digits``."""
    if reference.startswith("projects/"):
        return reference
    if not reference or "/" in reference:
        raise InvalidArgument(f"{reference!r} is no id of {collection}; give an id or a full resource name")
    return f"projects/{project}/{collection}/{reference}"


def version(project: str, reference: str) -> str:
    """A version: ``digits@production`` or ``digits@3``.

    Raises:
        InvalidArgument: it names no version.
    """
    if reference.startswith("projects/"):
        return reference
    model, at, number = reference.partition("@")
    if not (model and at and number) or "/" in number:
        raise InvalidArgument(
            f"{reference!r} names no version; write MODEL@NUMBER or MODEL@ALIAS, or the full resource name",
            field="version",
        )
    return f"{resource(project, 'models', model)}/versions/{number}"


def variant(project: str, reference: str) -> str:
    """A variant: ``digits@3/litert-int8``.

    Raises:
        InvalidArgument: it names no variant.
    """
    if reference.startswith("projects/"):
        return reference
    head, slash, name = reference.rpartition("/")
    if not (slash and name):
        raise InvalidArgument(
            f"{reference!r} names no variant; write MODEL@NUMBER/VARIANT, or the full resource name", field="variant"
        )
    return f"{version(project, head)}/variants/{name}"


def last(name: str) -> str:
    """The last part of a resource name: its id."""
    return name.rpartition("/")[2]
