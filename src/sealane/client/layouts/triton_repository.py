"""A model of Triton's model repository: ``config.pbtxt`` beside a numbered folder for each version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sealane.client import model_files
from sealane.client.layouts import folders, triton_config, triton_warm_up
from sealane.client.layouts.incoming import Incoming, with_files, with_manifest
from sealane.client.layouts.triton_config import Config
from sealane.client.model_files import LocalModel
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import Signature, TensorSpec

#: Where the labels of an output travel; the names of labels' files say nothing of outputs.
LABELS = "labels/{output}.txt"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def is_one(folder: Path) -> bool:
    """Whether a folder is a model of a repository, or a repository."""
    return (folder / triton_config.FILE).is_file() or bool(_models(folder))


def read(folder: Path, wanted: str) -> tuple[Incoming, ...]:
    """The wanted versions (``latest``, ``all``, a number; those that its version_policy names where it is empty).

    Args:
        folder: of a model, or a repository with one model.
        wanted: which versions.

    Raises:
        InvalidArgument: several models, no such version, or what is not served; the message says what to do.
    """
    if not (folder / triton_config.FILE).is_file():
        folder = _only(folder)
    folders.check(folder)
    config = triton_config.read(folder / triton_config.FILE)
    there = folders.versions(folder)
    if wanted:
        numbers = folders.chosen(there, wanted, folder)
    elif set(config.versions) == {"latest"}:
        numbers = dict(list(there.items())[-len(config.versions) :]) or folders.chosen(there, "latest", folder)
    else:
        numbers = {
            number: path for one in config.versions for number, path in folders.chosen(there, one, folder).items()
        }
    return tuple(_version(folder, number, path, config) for number, path in sorted(numbers.items()))


def _models(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if (item / triton_config.FILE).is_file())


def _only(folder: Path) -> Path:
    models = _models(folder)
    if len(models) != 1:
        names = ", ".join(model.name for model in models) or "none"
        raise folders.invalid(
            f"{folder} is a repository of several models or of none ({names}); give the folder of one"
        )
    return models[0]


def _version(folder: Path, number: int, path: Path, config: Config) -> Incoming:
    main = folders.inside(path, config.file, triton_config.FILE)
    told = Signature(config.inputs, config.outputs, DEFAULT_SIGNATURE)
    model = _torch(main, told) if config.backend == "pytorch" else _of_its_own(main, config)
    labels, notes = _labels(folder, config)
    examples, more = triton_warm_up.read(folder, config, model.signatures)
    model = with_manifest(with_files(model, labels), config.manifest)
    return Incoming(f"{folder.name}/{number}", model, examples, notes=(*config.notes, *notes, *more))


def _of_its_own(main: Path, config: Config) -> LocalModel:
    """A model that says itself what it takes, held against what the configuration says of it."""
    if config.backend == "onnxruntime" and main.is_dir():
        main = folders.inside(main, "model.onnx", triton_config.FILE)
    model = model_files.inspect(main)
    if config.backend == "openvino" and model.variant.partition("-")[0] not in ("openvino", "onnx"):
        raise folders.refused(f"{main} is no file of OpenVINO; push it as it is")
    signature = next((item for item in model.signatures if item.name == DEFAULT_SIGNATURE), model.signatures[0])
    for kind, own, told in (("input", signature.inputs, config.inputs), ("output", signature.outputs, config.outputs)):
        known = {spec.name: spec.datatype for spec in own}
        for spec in told:
            if known.get(spec.name) != spec.datatype:
                raise folders.invalid(
                    f"{kind} {spec.name!r} of {triton_config.FILE} is {spec.datatype} and the model has "
                    f"{known or 'none'}; correct one of them"
                )
    if not config.filled:
        return model
    outer = tuple(
        replace(
            item,
            inputs=tuple(spec for spec in item.inputs if spec.name not in config.filled),
            outputs=tuple(spec for spec in item.outputs if spec.name not in config.filled),
        )
        for item in model.signatures
    )
    return replace(model, signatures=outer)


def _torch(main: Path, told: Signature) -> LocalModel:
    """TorchScript does not say what it takes: the configuration does, in the order of the names' numbers."""
    if not told.inputs or not told.outputs:
        raise folders.invalid(f"{triton_config.FILE} has to name inputs and outputs of a TorchScript model; add them")
    sides = [
        tuple(sorted(side, key=_index)) if all(map(_numbered, side)) else side for side in (told.inputs, told.outputs)
    ]
    signature = Signature(sides[0], sides[1], DEFAULT_SIGNATURE)
    return model_files.inspect(main, signatures=(signature,))


def _numbered(spec: TensorSpec) -> bool:
    return re.fullmatch(r".*__[0-9]+", spec.name) is not None


def _index(spec: TensorSpec) -> int:
    return int(spec.name.rpartition("__")[2])


def _labels(folder: Path, config: Config) -> tuple[Mapping[str, Path], tuple[str, ...]]:
    files = {}
    notes = []
    for output, name in config.labels.items():
        file = folders.inside(folder, name, f"label_filename of {output!r}")
        if not _PLAIN.fullmatch(output):
            notes.append(f"the labels of {output!r} stay behind: its name is no file's")
            continue
        files[LABELS.format(output=output)] = file
        notes.append(
            f"the labels of {output!r} travel as {LABELS.format(output=output)}; answers hold them only with a step "
            "(docs/steps.md)"
        )
    return files, tuple(notes)
