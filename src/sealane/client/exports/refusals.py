"""Errors that all exporters share."""

from __future__ import annotations

from sealane.errors import FailedPrecondition, InvalidArgument


def not_exportable(what: str, error: BaseException | None, remedy: str) -> InvalidArgument:
    """The error where a framework does not export its own object; its first words are told."""
    told = " ".join(str(error).split())[:300].rstrip(".") if error is not None else ""
    return InvalidArgument(
        f"the {what} cannot be exported{f': {told}' if told else ''}; {remedy}",
        reason="MODEL_NOT_EXPORTABLE",
        field="model",
    )


def missing(what: str, package: str, extra: str) -> FailedPrecondition:
    """The error where the package that exports is not installed."""
    return FailedPrecondition(
        f"exporting {what} needs {package}; pip install 'sealane[{extra}]'",
        reason="EXPORTER_MISSING",
        extra=extra,
    )


def example_needed(what: str) -> InvalidArgument:
    """The error where an export has to see a request."""
    return InvalidArgument(
        f"the export of {what} follows one request; pass example=, an array, a dict of arrays by input name or a "
        "tuple with one array for each input",
        reason="EXAMPLE_NEEDED",
        field="example",
    )


def example_refused(why: str) -> InvalidArgument:
    """The error where the example is none that the model takes."""
    return InvalidArgument(f"{why}; pass an example that the model takes", reason="EXAMPLE_INVALID", field="example")
