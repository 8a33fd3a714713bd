"""Triton's ``config.pbtxt``: how a model is served there, and the serving manifest that says the same here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sealane.client.layouts import folders, text_format
from sealane.client.layouts.triton_fields import Fields
from sealane.errors import InvalidArgument
from sealane.tensors import TensorSpec
from sealane.type.v1 import manifest_pb2 as pb

FILE = "config.pbtxt"
#: Platform, as configurations of old name it -> backend and the default name of the model's file.
_PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorflow_savedmodel": "tensorflow",
    "pytorch_libtorch": "pytorch",
}
#: Backend -> the name that its model has in a version's folder unless the configuration says another one.
MODEL_FILE = {
    "onnxruntime": "model.onnx",
    "tensorflow": "model.savedmodel",
    "openvino": "model.xml",
    "pytorch": "model.pt",
}
_REMEDIES = {
    "python": "push what it runs in its own format, and Python before or after it as steps (docs/steps.md)",
    "tensorrt": "push the ONNX file that the plan was built of",
    "tensorrt_plan": "push the ONNX file that the plan was built of",
    "tensorflow_graphdef": "write it as a SavedModel, with the names of its inputs and outputs",
    "fil": "push the forest as ONNX, or the scikit-learn object from its process",
}
CONTROLS = {
    "CONTROL_SEQUENCE_START": pb.SequenceBatching.CONTROL_START,
    "CONTROL_SEQUENCE_READY": pb.SequenceBatching.CONTROL_READY,
    "CONTROL_SEQUENCE_END": pb.SequenceBatching.CONTROL_END,
    "CONTROL_SEQUENCE_CORRID": pb.SequenceBatching.CONTROL_CORRID,
}
_TIMEOUT_ACTIONS = {
    "REJECT": pb.DynamicBatching.TIMEOUT_ACTION_REJECT,
    "DELAY": pb.DynamicBatching.TIMEOUT_ACTION_DELAY,
}


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration, read.

    Attributes:
        backend: which of :data:`MODEL_FILE`.
        file: name of the model in a version's folder.
        max_batch_size: most rows of a run; 0 where the first dimension is no batch.
        inputs: what callers send, with the batch in front.
        outputs: what callers get.
        filled: inputs and outputs that the server fills and keeps, of a model with sequences.
        manifest: how it is served here.
        labels: output -> name of the file with its labels.
        versions: those that it serves: ``all``, numbers, or ``latest`` as often as how many of the latest.
        warm_up: recorded requests, unread.
        notes: what does not come over.
    """

    backend: str
    file: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    filled: frozenset[str]
    manifest: pb.Manifest
    labels: Mapping[str, str]
    versions: tuple[str, ...]
    warm_up: tuple[Fields, ...]
    notes: tuple[str, ...]


def read(file: Path) -> Config:
    """The configuration in a file.

    Raises:
        InvalidArgument: it is none, or asks for what is not served; the message says what to do.
    """
    try:
        fields = Fields(text_format.parse(folders.text(file)))
    except InvalidArgument as error:
        if error.reason != "TEXT_FORMAT":
            raise
        raise folders.invalid(f"{file}: {error.message}") from error
    backend = _backend(fields)
    if (policy := fields.message("model_transaction_policy")) and policy.flag("decoupled"):
        raise folders.refused(
            "a decoupled model answers a request many times, which is not served; export one that does not"
        )
    most = fields.number("max_batch_size")
    notes: list[str] = []
    manifest = pb.Manifest()
    # Without a batch dimension requests are never put together there.
    manifest.dynamic_batching.max_batch_size = most or 1
    _instances(fields, manifest, notes)
    if batching := fields.message("dynamic_batching"):
        _dynamic_batching(batching, manifest.dynamic_batching, notes)
    filled = _sequences(fields, manifest)
    if (cache := fields.message("response_cache")) and cache.flag("enable"):
        manifest.deterministic = True
        notes.append("response_cache: equal requests share a run while they are under way; no answer is kept")
    labels: dict[str, str] = {}
    config = Config(
        backend=backend,
        file=fields.text("default_model_filename") or MODEL_FILE[backend],
        max_batch_size=most,
        inputs=_specs(fields.messages("input"), most),
        outputs=_specs(fields.messages("output"), most, labels),
        filled=filled,
        manifest=manifest,
        labels=labels,
        versions=_policy(fields),
        warm_up=tuple(fields.messages("model_warmup")),
        notes=(),
    )
    fields.ignore("name", "version_policy", "model_warmup")
    notes += [f"{path} is not served" for path in sorted(set(fields.unread())) if not path.startswith("model_warmup")]
    return replace(config, notes=tuple(notes))


def _backend(fields: Fields) -> str:
    platform, backend = fields.text("platform"), fields.text("backend")
    if platform == "ensemble" or fields.has("ensemble_scheduling"):
        raise _ensemble(fields)
    named = _PLATFORMS.get(platform, platform) if platform else backend
    if backend and platform and named != backend:
        raise folders.invalid(f"platform {platform!r} and backend {backend!r} of {FILE} disagree; leave one out")
    if named in MODEL_FILE:
        return named
    if not named:
        raise folders.invalid(f"{FILE} says neither platform nor backend; add one of {sorted(MODEL_FILE)}")
    remedy = _REMEDIES.get(named, f"push the model in a format of {sorted(MODEL_FILE)}")
    raise folders.refused(f"the backend {named!r} is not served; {remedy}")


def _ensemble(fields: Fields) -> InvalidArgument:
    """The models of an ensemble become deployments, and the ensemble a chain of them."""
    scheduling = fields.message("ensemble_scheduling")
    steps = [
        {
            "deployment": step.text("model_name"),
            "inputs": _pairs(step, "input_map"),
            "outputs": _pairs(step, "output_map"),
        }
        for step in (scheduling.messages("step") if scheduling else ())
    ]
    outputs = [output.text("name") for output in fields.messages("output")]
    chain = json.dumps({"steps": steps, "outputs": outputs})
    return folders.refused(
        f"an ensemble is no model but a chain of deployments; import and deploy each of its models, then write {chain} "
        "to chain.json and run `sealane deployments chain NAME chain.json`"
    )


def _pairs(step: Fields, name: str) -> dict[str, str]:
    return {entry.text("key"): entry.text("value") for entry in step.messages(name)}


def _specs(items: list[Fields], most: int, labels: dict[str, str] | None = None) -> tuple[TensorSpec, ...]:
    found = []
    for item in items:
        name, dims = item.text("name"), item.numbers("dims")
        item.ignore("format")  # says how an image lies in the tensor, which the model's shape says too
        if item.has("is_shape_tensor") or item.has("is_non_linear_format_io") or item.flag("optional"):
            raise folders.refused(f"tensor {name!r} is optional or a shape, which is not served; make it a plain one")
        if item.has("reshape"):
            raise folders.refused(
                f"tensor {name!r} has another shape for callers (reshape), which is not served; export the model with "
                "that shape"
            )
        if labels is not None and (file := item.text("label_filename")):
            labels[name] = file
        found.append(TensorSpec(name, item.datatype("data_type"), (-1, *dims) if most else tuple(dims)))
    return tuple(found)


def _instances(fields: Fields, manifest: pb.Manifest, notes: list[str]) -> None:
    groups = fields.messages("instance_group")
    kinds = {group.word("kind", "KIND_AUTO") for group in groups}
    count = sum(group.number("count") or 1 for group in groups)
    if count > 1:
        manifest.instances = count
    if "KIND_GPU" in kinds:
        manifest.device = "cuda"
    for group in groups:
        group.ignore("name")
        if group.numbers("gpus"):
            notes.append("instance_group.gpus: which device of a node is left to its operator")
    if len(kinds - {"KIND_AUTO"}) > 1:
        notes.append(f"instance_group: all instances run on {manifest.device or 'cpu'}")


def _dynamic_batching(fields: Fields, batching: pb.DynamicBatching, notes: list[str]) -> None:
    batching.preferred_batch_size.extend(fields.numbers("preferred_batch_size"))
    batching.max_queue_delay_microseconds = fields.number("max_queue_delay_microseconds")
    batching.priority_levels = fields.number("priority_levels")
    batching.default_priority_level = fields.number("default_priority_level")
    if fields.flag("preserve_ordering"):
        notes.append("dynamic_batching.preserve_ordering: answers come when they are ready")
    policy = fields.message("default_queue_policy")
    if policy is None:
        return
    action = policy.word("timeout_action", "REJECT")
    if action not in _TIMEOUT_ACTIONS:
        raise folders.invalid(f"timeout_action {action!r} of {FILE} is unknown; say REJECT or DELAY")
    batching.timeout_action = _TIMEOUT_ACTIONS[action]
    batching.default_timeout_microseconds = policy.number("default_timeout_microseconds")
    batching.max_queue_size = policy.number("max_queue_size")
    policy.ignore("allow_timeout_override")  # here a request may always bring its own, which only shortens


def _sequences(fields: Fields, manifest: pb.Manifest) -> frozenset[str]:
    """Fill in the manifest; the tensors that callers neither send nor get."""
    batching = fields.message("sequence_batching")
    if batching is None:
        return frozenset()
    told = manifest.sequence_batching
    told.max_sequence_idle_microseconds = batching.number("max_sequence_idle_microseconds")
    for entry in batching.messages("control_input"):
        name, controls = entry.text("name"), entry.messages("control")
        kinds = [_control(name, control) for control in controls]
        if len(kinds) != 1:
            raise folders.invalid(f"control input {name!r} of {FILE} has to say one thing; correct it")
        told.control_inputs[name] = kinds[0]
    for state in batching.messages("state"):
        if any(item.has("data_file") for item in state.messages("initial_state")):
            raise folders.refused("a state that begins with a file is not served; let the model begin with zeros")
        told.states.add(input_name=state.text("input_name"), output_name=state.text("output_name"))
        state.ignore("data_type", "dims", "initial_state", "use_same_buffer_for_input_output", "use_growable_memory")
    # Which slot of which instance a sequence has is not said here: it keeps to one worker.
    batching.ignore("direct", "oldest", "iterative_sequence")
    if batching.flag("iterative_sequence"):
        raise folders.refused("an iterative sequence is not served; send the requests of the sequence one by one")
    states = {name for state in told.states for name in (state.input_name, state.output_name)}
    return frozenset({*told.control_inputs, *states})


def _control(name: str, control: Fields) -> pb.SequenceBatching.Control.ValueType:
    kind = control.word("kind", "CONTROL_SEQUENCE_START")
    pairs = [control.reals(f"{word}_false_true") for word in ("int32", "fp32")]
    control.ignore("data_type", "bool_false_true")
    if kind not in CONTROLS or any(pair not in ([], [0.0, 1.0]) for pair in pairs):
        raise folders.refused(
            f"control input {name!r} is told {kind} by other numbers than 0 and 1, which is not served; let the model "
            "take these"
        )
    return CONTROLS[kind]


def _policy(fields: Fields) -> tuple[str, ...]:
    """The versions that it serves, as :func:`folders.chosen` takes them; ``latest`` once for each of several."""
    policy = fields.message("version_policy")
    if policy is None:
        return ("latest",)
    if policy.message("all") is not None:
        return ("all",)
    if specific := policy.message("specific"):
        return tuple(str(number) for number in specific.numbers("versions")) or ("latest",)
    latest = policy.message("latest")
    return ("latest",) * max(1, latest.number("num_versions") if latest else 1)
