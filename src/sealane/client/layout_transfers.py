"""Models in and out of the registry in the layouts of other servers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sealane.client import layouts, model_files, references
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import variant_service_pb2

if TYPE_CHECKING:
    from sealane.client.models import PushOptions

Push = Callable[[object, "PushOptions"], pb.Version]


@dataclass(frozen=True, slots=True)
class Imported:
    """A version that came over.

    Attributes:
        version: as the registry has it.
        source: what it was called there, such as ``digits/7``.
        notes: what did not come over.
    """

    version: pb.Version
    source: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExportedFolder:
    """A version that was written.

    Attributes:
        path: what the other server is given.
        notes: what it does not hold.
    """

    path: Path
    notes: tuple[str, ...]


class Puller(Protocol):
    """What an export needs of :class:`sealane.client.models.Models`."""

    def get_version(self, version: str) -> pb.Version:
        """A version."""
        ...

    def pull(self, version: str, directory: Path, *, variant: str) -> variant_service_pb2.Variant:
        """Its files."""
        ...


def import_all(push: Push, found: tuple[layouts.Incoming, ...], options: PushOptions) -> tuple[Imported, ...]:
    """Push what was found, oldest first; an alias goes to the last one."""
    done = []
    for place, one in enumerate(found):
        merged: PushOptions = {**options}
        merged["examples"] = (*one.examples, *options.get("examples", ()))
        merged["metrics"] = {**one.metrics, **options.get("metrics", {})}
        merged["commit"] = options.get("commit") or one.commit
        merged["job"] = options.get("job") or one.job
        if place < len(found) - 1:
            merged["alias"] = ""
        done.append(Imported(push(one.model, merged), one.source, one.notes))
    return tuple(done)


def export(models: Puller, version: str, directory: Path, layout: str, choice: tuple[str, str]) -> ExportedFolder:
    """Write a version in another server's layout; `choice` is the variant and the name, each empty for the default."""
    variant, name = choice
    there = models.get_version(version)
    with tempfile.TemporaryDirectory(prefix="sealane-export-") as scratch:
        pulled = models.pull(there.name, Path(scratch), variant=variant)
        outgoing = layouts.Outgoing(
            name=name or references.last(there.name.partition("/versions/")[0]),
            number=there.number,
            format=pulled.format,
            files={file.path: Path(scratch, file.path) for file in pulled.files},
            signatures=model_files.from_proto(there.signatures),
        )
        path, notes = layouts.write(outgoing, directory, layout)
    return ExportedFolder(path, notes)
