"""What a folder of another system becomes before it is pushed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sealane.client import model_companions
from sealane.client.model_files import LocalModel
from sealane.client.model_imports import Scratch
from sealane.tensors import Array
from sealane.type.v1 import manifest_pb2


@dataclass(frozen=True, slots=True)
class Incoming:
    """One version of a model, ready to be pushed.

    Attributes:
        source: what it was called there, such as ``digits/7``.
        model: its files and signatures.
        examples: requests to record with it, besides those among its files.
        metrics: measured in training.
        commit: of the training code.
        job: run that made it.
        notes: what does not come over, each with what to do where something can be done.
    """

    source: str
    model: LocalModel
    examples: tuple[Mapping[str, Array], ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    commit: str = ""
    job: str = ""
    notes: tuple[str, ...] = ()


def with_files(model: LocalModel, files: Mapping[str, Path]) -> LocalModel:
    """The model with more files; they take the place of those with the same path."""
    return replace(model, files={**model.files, **files})


def with_manifest(model: LocalModel, manifest: manifest_pb2.Manifest) -> LocalModel:
    """The model with a serving manifest that is made here; an empty one is left out."""
    if manifest == manifest_pb2.Manifest():
        return model
    scratch = model.scratch or Scratch(model_companions.MANIFEST_FILE)
    file = scratch.file.with_name(model_companions.MANIFEST_FILE)
    file.write_bytes(model_companions.manifest_file(manifest))
    return replace(with_files(model, {file.name: file}), scratch=scratch)
