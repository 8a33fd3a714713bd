"""Which layout a folder has, and its models."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sealane.client.layouts import folders, mlflow_folder, serving_folder, triton_repository
from sealane.client.layouts.incoming import Incoming


class Layout(Protocol):
    """A module that reads one layout."""

    def is_one(self, folder: Path, /) -> bool:
        """Whether a folder looks like it."""
        ...

    def read(self, folder: Path, wanted: str, /) -> tuple[Incoming, ...]:
        """The wanted versions, oldest first."""
        ...


#: Layouts by the names that callers give; a folder is looked at in this order.
LAYOUTS: dict[str, Layout] = {
    "mlflow": mlflow_folder,
    "triton": triton_repository,
    "tensorflow-serving": serving_folder,
}


def read(path: Path, layout: str = "", versions: str = "") -> tuple[Incoming, ...]:
    """The models in a folder, oldest first.

    Args:
        path: a model folder of MLflow, a ``base_path`` of TensorFlow Serving, or a model of a Triton repository.
        layout: one of :data:`LAYOUTS`; empty looks.
        versions: ``latest``, ``all`` or a number; empty takes what the layout says, which is mostly the latest.

    Raises:
        InvalidArgument: none of these, or one with what cannot be served; the message says what to do.
        FailedPrecondition: reading it needs a package that is not installed.
    """
    if not path.is_dir():
        raise folders.invalid(f"{path} is no folder; give one of {', '.join(LAYOUTS)}, and unpack archives yourself")
    if layout and layout not in LAYOUTS:
        raise folders.invalid(f"the layout {layout!r} is unknown; say one of {', '.join(LAYOUTS)}")
    if versions not in ("", "latest", "all") and not versions.isdecimal():
        raise folders.invalid(f"{versions!r} names no versions; say latest, all or a number")
    found = layout or next((name for name, kind in LAYOUTS.items() if kind.is_one(path)), "")
    if not found:
        raise folders.invalid(
            f"{path} is laid out as none of {', '.join(LAYOUTS)}; give the folder with MLmodel, with config.pbtxt, or "
            "with numbered folders of SavedModels, or push the model alone with `sealane models push`"
        )
    if not LAYOUTS[found].is_one(path):
        raise folders.invalid(
            f"{path} is not laid out as {found}; give the folder of the model, or leave the layout out"
        )
    return LAYOUTS[found].read(path, versions)
