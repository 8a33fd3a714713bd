"""What the exporters of the frameworks hand back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sealane.client.model_imports import Scratch
from sealane.tensors import Array


@dataclass(frozen=True, slots=True)
class Written:
    """A model that was written, before anything is compared.

    Attributes:
        path: the file, or the folder of a SavedModel.
        inputs: the example by the names of the written model's inputs; empty where there was none.
        answers: what the object itself answers to it, by output; empty where it cannot be asked.
    """

    path: Path
    inputs: Mapping[str, Array] = field(default_factory=dict)
    answers: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exported:
    """A model that was written, and compared where that could be done.

    Attributes:
        path: what to push.
        examples: the example as a request; empty where there was none.
        compared: whether the written model was asked and answered as the object does.
        scratch: the folder; it goes with this object.
    """

    path: Path
    examples: tuple[Mapping[str, Array], ...]
    compared: bool
    scratch: Scratch
