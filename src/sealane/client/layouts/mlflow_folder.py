"""A model folder of MLflow: ``MLmodel`` beside the files of its flavors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from sealane.client import model_files
from sealane.client.exports import examples
from sealane.client.layouts import folders
from sealane.client.layouts.incoming import Incoming, with_files
from sealane.errors import FailedPrecondition, InvalidArgument, SealaneError
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import Array, Signature

FILE = "MLmodel"
MAX_EXAMPLE_BYTES = 16 << 20
_PUSH = "load the model in the process that trained it and push the object itself with client.models.push(model, ...)"
Node = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Flavor:
    """A flavor that is served, and where its files lie.

    Attributes:
        name: as MLflow calls it.
        path: the file or folder.
    """

    name: str
    path: Path


def is_one(folder: Path) -> bool:
    """Whether a folder looks like it."""
    return (folder / FILE).is_file()


def read(folder: Path, wanted: str) -> tuple[Incoming, ...]:
    """The model of the folder; MLflow keeps one in each, so there are no versions to choose from.

    Raises:
        InvalidArgument: a flavor that cannot be served without its code; the message says what to do.
        FailedPrecondition: the extra that reads YAML is not installed.
    """
    if wanted not in ("", "latest", "all"):
        raise folders.invalid(f"{folder} holds one model of MLflow and no version {wanted!r}; leave versions out")
    folders.check(folder)
    told = _parse(folder / FILE)
    flavor = _flavor(folder, told)
    model = model_files.inspect(flavor.path)
    recorded, notes = _example(folder, told, model.signatures)
    notes += _other_names(told, model.signatures)
    model = with_files(model, {FILE: folder / FILE})
    run = _run_folder(folder)
    run_id = str(told.get("run_id") or "")
    source = "/".join(filter(None, (run_id, str(told.get("model_uuid") or folder.name))))
    metrics = _metrics(run / "metrics") if run else {}
    return (Incoming(source, model, recorded, metrics, _commit(run) if run else "", run_id, notes),)


def _parse(file: Path) -> Node:
    try:
        import yaml
    except ImportError as error:
        raise FailedPrecondition(
            "reading a model folder of MLflow needs PyYAML; pip install 'sealane[import]'",
            reason="EXTRA_MISSING",
            extra="import",
        ) from error
    try:
        told = yaml.safe_load(folders.text(file))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise folders.invalid(f"{file} is no YAML that can be read; write the model again") from error
    if not isinstance(told, dict) or not isinstance(told.get("flavors"), dict):
        raise folders.invalid(f"{file} names no flavors; give a folder that MLflow's save_model wrote")
    return told


def _flavor(folder: Path, told: Node) -> _Flavor:
    flavors = cast(Mapping[str, object], told["flavors"])
    for name, find in (("onnx", _onnx), ("tensorflow", _tensorflow), ("keras", _tensorflow), ("pytorch", _pytorch)):
        described = flavors.get(name)
        if isinstance(described, dict):
            return _Flavor(name, find(folder, described))
    own = sorted(str(name) for name in flavors if name != "python_function")
    kind = own[0] if own else "python_function"
    raise folders.refused(
        f"the flavor {kind} of {folder} is a pickle or code, which is never loaded from a folder; {_PUSH}, or log it "
        "with mlflow.onnx"
    )


def _onnx(folder: Path, described: Node) -> Path:
    return folders.inside(folder, str(described.get("data") or "model.onnx"), f"flavor onnx of {FILE}")


def _tensorflow(folder: Path, described: Node) -> Path:
    if described.get("saved_model_dir"):
        return folders.inside(folder, str(described["saved_model_dir"]), f"flavor tensorflow of {FILE}")
    data = folders.inside(folder, str(described.get("data") or "data"), f"flavor tensorflow of {FILE}")
    if sorted(data.glob("*.cloudpickle")):
        raise folders.refused(f"{data} holds custom objects in a pickle, which is never loaded; {_PUSH}")
    for name in ("model.keras", "model", "model.h5"):
        if (data / name).exists():
            return data / name
    raise folders.invalid(f"{data} holds no model.keras and no SavedModel; save the model again with a newer MLflow")


def _pytorch(folder: Path, described: Node) -> Path:
    data = folders.inside(folder, str(described.get("model_data") or "data"), f"flavor pytorch of {FILE}")
    if (data / "model.pt2").is_file():
        return data / "model.pt2"
    raise folders.refused(
        f"{data} holds a pickle of a PyTorch module, which is never loaded; {_PUSH}, or save it with "
        "mlflow.pytorch.save_model(..., serialization_format='pt2', input_example=...)"
    )


def _example(
    folder: Path, told: Node, signatures: tuple[Signature, ...]
) -> tuple[tuple[Mapping[str, Array], ...], tuple[str, ...]]:
    """The input example as a request, or why it is none."""
    info = told.get("saved_input_example_info")
    named = {signature.name: signature for signature in signatures}
    signature = named.get(DEFAULT_SIGNATURE) or next(iter(named.values()), None)
    if not isinstance(info, dict) or signature is None:
        return (), ()
    try:
        file = folders.inside(folder, str(info.get("artifact_path") or ""), f"saved_input_example_info of {FILE}")
        if file.stat().st_size > MAX_EXAMPLE_BYTES:
            raise folders.invalid(f"it has more than {MAX_EXAMPLE_BYTES} bytes")
        content = json.loads(file.read_bytes())
        if info.get("params"):
            content = content["inputs"]
        return (_request(content, str(info.get("type")), signature),), ()
    except InvalidArgument as error:
        if error.reason == "LAYOUT_UNSAFE":
            raise
        return (), (f"the input example is not recorded: {error.message}",)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        return (), (f"the input example is not recorded: it cannot be read ({str(error)[:200]})",)


def _request(content: object, kind: str, signature: Signature) -> dict[str, Array]:
    """JSON has no datatypes: numbers take those of the model's inputs."""
    if kind == "dataframe" and isinstance(content, dict):
        names = [str(name) for name in content.get("columns", ())]
        rows = np.asarray(content["data"])
        taken = {spec.name: spec for spec in signature.inputs}
        if set(names) == set(taken) and names:
            columns = {name: rows[:, place] for place, name in enumerate(names)}
            shaped = {name: array[:, None] if len(taken[name].shape) == 2 else array for name, array in columns.items()}
            return examples.as_request(shaped, signature)
        return examples.as_request(rows, signature)
    if isinstance(content, dict):
        return examples.as_request({name: np.asarray(value) for name, value in content.items()}, signature)
    return examples.as_request(np.asarray(content), signature)


def _other_names(told: Node, signatures: tuple[Signature, ...]) -> tuple[str, ...]:
    """Callers name the model's own tensors, whatever MLflow's signature calls its columns."""
    signature = told.get("signature")
    try:
        columns = json.loads(str(cast(Node, signature)["inputs"])) if isinstance(signature, dict) else []
        names = [str(column["name"]) for column in columns if "name" in column]
    except (ValueError, KeyError, TypeError):
        return ("its signature is not understood; the model's own is taken",)
    own = {spec.name for item in signatures for spec in item.inputs}
    if not names or set(names) <= own:
        return ()
    return (
        f"its signature names {', '.join(names[:5])}; callers send the model's own inputs, {', '.join(sorted(own))}",
    )


def _run_folder(folder: Path) -> Path | None:
    """What MLflow's store of files keeps beside a logged model: the run's folder, or the model's own."""
    for above in (folder.parent, folder.parent.parent):
        if above.name == "artifacts" or (above == folder.parent and folder.name == "artifacts"):
            run = above.parent if above.name == "artifacts" else above
            if (run / "meta.yaml").is_file():
                return run
    return None


def _metrics(folder: Path) -> dict[str, float]:
    """The last value of each metric: lines of time, value, step and more."""
    found = {}
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        if file.is_symlink() or not file.is_file():
            continue
        lines = folders.text(file).split("\n")
        try:
            found[file.name] = float([line for line in lines if line.strip()][-1].split()[1])
        except (IndexError, ValueError):
            continue
    return found


def _commit(run: Path) -> str:
    file = run / "tags" / "mlflow.source.git.commit"
    try:
        return folders.text(file).strip() if file.is_file() and not file.is_symlink() else ""
    except SealaneError:
        return ""
