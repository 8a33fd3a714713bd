"""The ``config.pbtxt`` of a variant for Triton, with the files that it names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealane.client import model_files
from sealane.client.layouts import triton_config, triton_repository, triton_warm_up
from sealane.client.layouts.text_format import Message, Value, Word, dump
from sealane.errors import FailedPrecondition
from sealane.protocols import savedmodel
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.protocols.openinference_tensors import encode_raw
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.tensors import Array, Signature, TensorSpec, datatype_of
from sealane.type.v1 import manifest_pb2 as pb

if TYPE_CHECKING:
    from sealane.client.layouts.writing import Outgoing

#: Rows of a run where the manifest leaves the size to the worker.
MAX_BATCH_SIZE = 32
_BACKENDS = {
    variant_pb.FORMAT_ONNX: ("onnxruntime", ".onnx"),
    variant_pb.FORMAT_OPENVINO: ("openvino", ".xml"),
    variant_pb.FORMAT_TORCH_SCRIPT: ("pytorch", ".pt"),
}
_TENSORFLOW = "model.savedmodel"
_CONTROLS = {kind: name for name, kind in triton_config.CONTROLS.items()}
Fields = dict[str, list[Value]]
Request = tuple[Mapping[str, Array], str]


@dataclass(frozen=True, slots=True)
class Written:
    """Files beside the version's folder, and what they do not say."""

    files: Mapping[str, bytes]
    notes: tuple[str, ...]


def backend_of(form: variant_pb.Format.ValueType, paths: Sequence[str]) -> tuple[str, str]:
    """Triton's backend for a format and the name of the model in its version's folder; empty where there is none."""
    if form == variant_pb.FORMAT_SAVED_MODEL:
        return "tensorflow", _TENSORFLOW
    backend, suffix = _BACKENDS.get(form, ("", ""))
    return backend, next((path for path in paths if suffix and path.endswith(suffix) and "/" not in path), "")


def config_of(model: Outgoing, manifest: pb.Manifest, served: tuple[str, str], requests: Sequence[Request]) -> Written:
    """The configuration; `served` is what :func:`backend_of` said, `requests` are recorded ones with their signatures.

    Raises:
        FailedPrecondition: names that the backend does not know (LAYOUT_CANNOT_HOLD).
    """
    backend, file = served
    signature = next((item for item in model.signatures if item.name == DEFAULT_SIGNATURE), model.signatures[0])
    if backend == "pytorch":
        _check_numbered(signature)
    sequences = manifest.sequence_batching if manifest.HasField("sequence_batching") else None
    filled = set(sequences.control_inputs) if sequences else set()
    filled |= (
        {name for state in sequences.states for name in (state.input_name, state.output_name)} if sequences else set()
    )
    most = _most(signature, manifest.dynamic_batching)
    fields: Fields = {"name": [model.name.encode()], "backend": [backend.encode()], "max_batch_size": [most]}
    if file != triton_config.MODEL_FILE[backend]:
        fields["default_model_filename"] = [file.encode()]
    labels = _labels(model, signature)
    fields["input"] = [_tensor(spec, most) for spec in signature.inputs if spec.name not in filled]
    fields["output"] = [_tensor(spec, most, labels) for spec in signature.outputs if spec.name not in filled]
    fields["instance_group"] = [_instances(manifest)]
    if sequences:
        fields["sequence_batching"] = [_sequences(sequences, _own(model, signature.name, file), most)]
    elif most > 0:
        fields["dynamic_batching"] = [_batching(manifest.dynamic_batching)]
    if manifest.deterministic:
        fields["response_cache"] = [Message({"enable": [Word("true")]})]
    if backend == "tensorflow" and signature.name != DEFAULT_SIGNATURE:
        fields["parameters"] = [_parameter("TF_SIGNATURE_DEF", signature.name)]
    own = [inputs for inputs, name in requests if name in ("", signature.name)]
    warm, files = _warm_up(own, most)
    if warm:
        fields["model_warmup"] = warm
    files |= {name: model.files[path].read_bytes() for path, name in labels.values()}
    files[triton_config.FILE] = dump(fields).encode()
    return Written(files, _notes(model, manifest, signature, len(requests) - len(own)))


def _most(signature: Signature, batching: pb.DynamicBatching) -> int:
    """Rows of a run; 0 where a first dimension is fixed, or requests are never put together."""
    free = all(spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs))
    if not free or batching.max_batch_size == 1:
        return 0
    return batching.max_batch_size or MAX_BATCH_SIZE


def _tensor(spec: TensorSpec, most: int, labels: Mapping[str, tuple[str, str]] | None = None) -> Message:
    dims: list[Value] = list(spec.shape[1:] if most else spec.shape)
    fields: Fields = {"name": [spec.name.encode()], "data_type": [Word(f"TYPE_{_kind(spec.datatype)}")], "dims": dims}
    if labels and spec.name in labels:
        fields["label_filename"] = [labels[spec.name][1].encode()]
    return Message(fields)


def _labels(model: Outgoing, signature: Signature) -> dict[str, tuple[str, str]]:
    """Output -> path in the variant, and name beside the configuration."""
    paths = {spec.name: triton_repository.LABELS.format(output=spec.name) for spec in signature.outputs}
    return {name: (path, path.replace("/", "_")) for name, path in paths.items() if path in model.files}


def _instances(manifest: pb.Manifest) -> Message:
    kind = "KIND_GPU" if manifest.device.startswith("cuda") else "KIND_CPU"
    return Message({"count": [manifest.instances or 1], "kind": [Word(kind)]})


def _batching(batching: pb.DynamicBatching) -> Message:
    fields: Fields = {}
    if batching.preferred_batch_size:
        fields["preferred_batch_size"] = list(batching.preferred_batch_size)
    for name in ("max_queue_delay_microseconds", "priority_levels", "default_priority_level"):
        if value := getattr(batching, name):
            fields[name] = [value]
    if batching.priority_levels and not batching.default_priority_level:
        # Triton asks for it; here 0 is the middle one.
        fields["default_priority_level"] = [(batching.priority_levels + 1) // 2]
    policy: Fields = {}
    if batching.timeout_action == pb.DynamicBatching.TIMEOUT_ACTION_DELAY:
        policy["timeout_action"] = [Word("DELAY")]
    for name in ("default_timeout_microseconds", "max_queue_size"):
        if value := getattr(batching, name):
            policy[name] = [value]
    if policy:
        fields["default_queue_policy"] = [Message(policy)]
    return Message(fields)


def _own(model: Outgoing, name: str, file: str) -> dict[str, TensorSpec]:
    """The tensors of the model itself, with those that callers neither send nor get."""
    main = model.files.get(file) or model.files[savedmodel.FILE_NAME].parent
    signatures = model_files.inspect(main).signatures
    signature = next((item for item in signatures if item.name == name), signatures[0])
    return {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}


def _sequences(batching: pb.SequenceBatching, own: Mapping[str, TensorSpec], most: int) -> Message:
    fields: Fields = {"direct": [Message({})]}
    if batching.max_sequence_idle_microseconds:
        fields["max_sequence_idle_microseconds"] = [batching.max_sequence_idle_microseconds]
    fields["control_input"] = [
        Message({"name": [name.encode()], "control": [_control(kind, own[name])]})
        for name, kind in sorted(batching.control_inputs.items())
    ]
    fields["state"] = [_state(state, own[state.input_name], most) for state in batching.states]
    return Message(fields)


def _control(kind: pb.SequenceBatching.Control.ValueType, spec: TensorSpec) -> Message:
    fields: Fields = {"kind": [Word(_CONTROLS[kind])]}
    if kind == pb.SequenceBatching.CONTROL_CORRID:
        fields["data_type"] = [Word(f"TYPE_{_kind(spec.datatype)}")]
    elif spec.datatype == "BOOL":
        fields["bool_false_true"] = [Word("false"), Word("true")]
    elif spec.datatype in ("INT32", "FP32"):
        fields[f"{spec.datatype.lower()}_false_true"] = [0, 1]
    else:
        raise FailedPrecondition(
            f"triton cannot hold a control input of {spec.datatype}; let {spec.name!r} be INT32, FP32 or BOOL",
            reason="LAYOUT_CANNOT_HOLD",
            layout="triton",
        )
    return Message(fields)


def _state(state: pb.SequenceBatching.State, spec: TensorSpec, most: int) -> Message:
    fields: Fields = {"input_name": [state.input_name.encode()], "output_name": [state.output_name.encode()]}
    dims: list[Value] = list(spec.shape[1:] if most else spec.shape)
    return Message({**fields, "data_type": [Word(f"TYPE_{_kind(spec.datatype)}")], "dims": dims})


def _kind(datatype: str) -> str:
    return "STRING" if datatype == "BYTES" else datatype


def _warm_up(requests: Sequence[Mapping[str, Array]], most: int) -> tuple[list[Value], dict[str, bytes]]:
    """Samples, with their arrays in files of raw elements. A sample is one row, of which Triton asks for several."""
    samples = [sample for request in requests for sample in (_rows(request) if most else [(request, 1)])]
    made: list[Value] = []
    files: dict[str, bytes] = {}
    for place, (sample, rows) in enumerate(samples[: triton_warm_up.MAX_REQUESTS]):
        entries: list[Value] = []
        for position, (name, array) in enumerate(sample.items()):
            file = f"{place}_{position}"
            files[f"{triton_warm_up.FOLDER}/{file}"] = encode_raw(array)
            value: Fields = {
                "data_type": [Word(f"TYPE_{_kind(datatype_of(array))}")],
                "dims": list(array.shape),
                "input_data_file": [file.encode()],
            }
            entries.append(Message({"key": [name.encode()], "value": [Message(value)]}))
        made.append(Message({"name": [f"request {place}".encode()], "batch_size": [rows], "inputs": entries}))
    return made, files


def _rows(request: Mapping[str, Array]) -> list[tuple[Mapping[str, Array], int]]:
    """The rows of a request, each with how many there are in it: one where all are alike."""
    count = next(iter(request.values())).shape[0]
    rows = [{name: array[place] for name, array in request.items()} for place in range(count)]
    first = {name: encode_raw(array) for name, array in rows[0].items()}
    if all({name: encode_raw(array) for name, array in row.items()} == first for row in rows[1:]):
        return [(rows[0], count)]
    return [(row, 1) for row in rows]


def _notes(model: Outgoing, manifest: pb.Manifest, signature: Signature, others: int) -> tuple[str, ...]:
    notes = [
        f"{name} of sealane.json is no part of this layout"
        for name in ("threads", "memory_limit_bytes")
        if getattr(manifest, name)
    ]
    if manifest.dynamic_batching.latency_objective_ms or manifest.dynamic_batching.max_queue_bytes:
        notes.append("latency_objective_ms and max_queue_bytes of sealane.json are no part of this layout")
    if len(model.signatures) > 1:
        notes.append(f"only the signature {signature.name!r} is served there")
    if others:
        notes.append(f"{others} recorded requests to other signatures stay behind")
    return tuple(notes)


def _parameter(key: str, value: str) -> Message:
    return Message({"key": [key.encode()], "value": [Message({"string_value": [value.encode()]})]})


def _check_numbered(signature: Signature) -> None:
    """Triton's PyTorch backend tells tensors of TorchScript by the numbers in their names."""
    for side in (signature.inputs, signature.outputs):
        if [re.sub(r".*__", "", spec.name) for spec in side] != [str(place) for place in range(len(side))]:
            raise FailedPrecondition(
                "triton cannot hold a TorchScript model whose tensors are not named NAME__0, NAME__1 and so on; export "
                "a variant that is ONNX",
                reason="LAYOUT_CANNOT_HOLD",
                layout="triton",
            )
