"""What is pushed: a model on disk, or one in memory that is written to disk first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sealane.client import model_files
from sealane.client.model_files import LocalModel
from sealane.errors import InvalidArgument
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import Array

if TYPE_CHECKING:
    from sealane.client.models import PushOptions

Requests = tuple[Mapping[str, Array], ...]


def prepare(model: Path | str | object, options: PushOptions) -> tuple[LocalModel, Requests]:
    """The files of a model, and the requests to record with them.

    Raises:
        InvalidArgument: no model at the path, an object that cannot be exported, or an example that it does not take.
        FailedPrecondition: the exported model answers otherwise than the object, or something is not installed.
    """
    recorded = tuple(options.get("examples", ()))
    variant, signatures = options.get("variant", ""), options.get("signatures", ())
    example = options.get("example")
    if isinstance(model, LocalModel):
        return model, recorded
    if isinstance(model, Path | str):
        local = model_files.inspect(Path(model), variant=variant, signatures=signatures)
        return local, (*_as_requests(example, local), *recorded)
    # Only now: whoever pushes files needs none of it.
    from sealane.client.exports import export

    exported = export(model, example)
    local = model_files.inspect(exported.path, variant=variant, signatures=signatures)
    return replace(local, scratch=exported.scratch), (*exported.examples, *recorded)


def framework_of(model: Path | str | object) -> tuple[str, str]:
    """Framework of a model in memory, and its version; empty for files, which do not always tell."""
    if isinstance(model, Path | str | LocalModel):
        return "", ""
    from sealane.client.exports import framework_of as of_object

    return of_object(model)


def _as_requests(example: object, local: LocalModel) -> Requests:
    if example is None:
        return ()
    from sealane.client.exports.examples import as_request

    named = {signature.name: signature for signature in local.signatures}
    signature = named.get(DEFAULT_SIGNATURE) or next(iter(named.values()), None)
    if signature is None:
        raise InvalidArgument("the model says nothing of what it takes; pass signatures", field="example")
    return (as_request(example, signature),)
