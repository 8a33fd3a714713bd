"""The serving manifest of a variant: ``sealane.json`` among its files (``sealane.type.v1.Manifest``), and its warm-up.

Both are covered by the variant's digest like every other file, so what was approved is what runs.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import cast

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols import openinference_tensors, peek, tfserving
from sealane.security.sealing_messages import policy_of
from sealane.security.sealing_policy import SealingPolicy
from sealane.type.v1 import manifest_pb2 as pb
from sealane_worker.model.queueing import DELAY, REJECT, Batching
from sealane_worker.sequences import CORRID, END, MAX_IDLE_SECONDS, READY, START
from sealane_worker.spec import Sequencing, Serving, Step, WarmRequest

MANIFEST = "sealane.json"
WARM_UP = "warmup.binpb"
#: What TensorFlow Serving runs before a version is AVAILABLE: a TFRecord file of PredictionLog messages.
TENSORFLOW_WARM_UP = "assets.extra/tf_serving_warmup_requests"
MAX_WARM_UP = 1000
MAX_ROWS = 4096
MAX_INSTANCES = 64
MAX_MANIFEST_BYTES = 8 << 20
_PREDICT_LOG, _REQUEST = 6, 1
_LENGTH_DELIMITED = 2
_CONTROLS = {
    pb.SequenceBatching.CONTROL_START: START,
    pb.SequenceBatching.CONTROL_READY: READY,
    pb.SequenceBatching.CONTROL_END: END,
    pb.SequenceBatching.CONTROL_CORRID: CORRID,
}


def read_serving(folder: Path) -> Serving:
    """How the variant in `folder` wants to be served; the defaults where it does not say.

    Raises:
        FailedPrecondition: the manifest cannot be read, or asks for what cannot be (MANIFEST_INVALID).
    """
    path = folder / MANIFEST
    if not path.is_file():
        return Serving()
    message = pb.Manifest()
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise json_format.ParseError("it has more than 8 MiB")
        text = path.read_text()
        if not text.lstrip().startswith("{"):  # an empty list parses as an empty message
            raise json_format.ParseError("it is no JSON object")
        json_format.Parse(text, message)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise _invalid(str(error).splitlines()[0][:300]) from error
    _check(message)
    return Serving(
        device=message.device or "cpu",
        threads=message.threads,
        instances=message.instances or 1,
        batching=_batching(message.dynamic_batching),
        before=tuple(_step(step) for step in message.before),
        after=tuple(_step(step) for step in message.after),
        memory_limit_bytes=message.memory_limit_bytes,
        deterministic=message.deterministic,
        sequencing=_sequencing(message.sequence_batching) if message.HasField("sequence_batching") else None,
        sealing=_sealing(message),
    )


def read_warm_up(folder: Path) -> tuple[WarmRequest, ...]:
    """The recorded requests of the variant in `folder`, its own and those of TensorFlow Serving.

    Raises:
        FailedPrecondition: a file that cannot be read (WARM_UP_INVALID).
    """
    requests: list[WarmRequest] = []
    try:
        if (folder / WARM_UP).is_file():
            requests += _own(pb.WarmUp.FromString((folder / WARM_UP).read_bytes()))
        if (folder / TENSORFLOW_WARM_UP).is_file():
            requests += _tensorflow((folder / TENSORFLOW_WARM_UP).read_bytes())
    except (DecodeError, InvalidArgument, struct.error) as error:
        raise FailedPrecondition(
            f"the warm-up requests of this variant cannot be read ({str(error)[:300]}); record them anew",
            reason="WARM_UP_INVALID",
        ) from error
    if len(requests) > MAX_WARM_UP:
        raise FailedPrecondition(
            f"the variant has {len(requests)} warm-up requests, at most {MAX_WARM_UP} are run; record fewer",
            reason="WARM_UP_INVALID",
        )
    return tuple(requests)


def _own(message: pb.WarmUp) -> list[WarmRequest]:
    requests = []
    for request in message.requests:
        tensors = [
            oip.ModelInferRequest.InferInputTensor(name=item.name, datatype=item.datatype, shape=item.shape)
            for item in request.inputs
        ]
        raw = [item.data for item in request.inputs]
        inputs = openinference_tensors.decode_tensors(tensors, raw, "warm-up", "inputs")
        requests.append(WarmRequest(inputs, request.signature))
    return requests


def _tensorflow(records: bytes) -> list[WarmRequest]:
    """Predict requests of a TFRecord file; the checksums of its records are not needed, the variant's digest holds.

    A record is u64 length, u32 checksum, the message, u32 checksum (tensorflow.org/tutorials/load_data/tfrecord).
    """
    requests, at = [], 0
    while at < len(records):
        (size,) = struct.unpack_from("<Q", records, at)
        log = records[at + 12 : at + 12 + size]
        if len(log) != size:
            raise InvalidArgument("a record ends too early")
        at += 16 + size
        for body in _inner(log, _PREDICT_LOG):
            for request in _inner(body, _REQUEST):
                call = tfserving.decode_request(tfs.PredictRequest.FromString(request))
                requests.append(WarmRequest(call.inputs, call.target.signature))
    return requests


def _inner(body: bytes, number: int) -> list[bytes]:
    found = peek.fields(body, 0, len(body))
    return [body[f.start : f.end] for f in found if (f.number, f.wire_type) == (number, _LENGTH_DELIMITED)]


def _sealing(message: pb.Manifest) -> SealingPolicy:
    try:
        return policy_of(message.sealing)
    except InvalidArgument as error:
        raise _invalid(error.message) from error


def _batching(message: pb.DynamicBatching) -> Batching:
    delay = message.timeout_action == pb.DynamicBatching.TIMEOUT_ACTION_DELAY
    return Batching(
        max_batch_size=message.max_batch_size,
        preferred_batch_size=tuple(sorted(set(message.preferred_batch_size))),
        max_queue_delay_microseconds=message.max_queue_delay_microseconds,
        priority_levels=message.priority_levels,
        default_priority_level=message.default_priority_level,
        timeout_action=DELAY if delay else REJECT,
        default_timeout_microseconds=message.default_timeout_microseconds,
        max_queue_size=message.max_queue_size,
        max_queue_bytes=message.max_queue_bytes,
        latency_objective_ms=message.latency_objective_ms,
    )


def _sequencing(message: pb.SequenceBatching) -> Sequencing:
    idle = message.max_sequence_idle_microseconds
    if not 0 <= idle <= 86_400_000_000:
        raise _invalid("sequence_batching.max_sequence_idle_microseconds must be from 0 to a day")
    controls = {name: _CONTROLS.get(kind, "") for name, kind in message.control_inputs.items()}
    if not all(controls.values()):
        raise _invalid("a control input of sequence_batching says nothing")
    states = {state.input_name: state.output_name for state in message.states}
    if len(states) < len(message.states) or controls.keys() & states.keys():
        raise _invalid("sequence_batching fills an input twice")
    return Sequencing(idle / 1e6 or MAX_IDLE_SECONDS, controls, states)


def _step(message: pb.Step) -> Step:
    return cast(Step, json_format.MessageToDict(message, preserving_proto_field_name=True))


def _check(message: pb.Manifest) -> None:
    batching = message.dynamic_batching
    numbers = {
        "threads": (message.threads, 256),
        "instances": (message.instances, MAX_INSTANCES),
        "memory_limit_bytes": (message.memory_limit_bytes, 1 << 50),
        "dynamic_batching.max_batch_size": (batching.max_batch_size, MAX_ROWS),
        "dynamic_batching.max_queue_delay_microseconds": (batching.max_queue_delay_microseconds, 60_000_000),
        "dynamic_batching.priority_levels": (batching.priority_levels, 255),
        "dynamic_batching.default_priority_level": (
            batching.default_priority_level,
            max(batching.priority_levels, 1),
        ),
        "dynamic_batching.default_timeout_microseconds": (batching.default_timeout_microseconds, 3_600_000_000),
        "dynamic_batching.max_queue_size": (batching.max_queue_size, 1 << 31),
        "dynamic_batching.max_queue_bytes": (batching.max_queue_bytes, 1 << 40),
    }
    for name, (value, most) in numbers.items():
        if not 0 <= value <= most:
            raise _invalid(f"{name} is {value}, it must be from 0 to {most}")
    if not 0 <= batching.latency_objective_ms < 3_600_000:  # false for what is no number, too
        raise _invalid("dynamic_batching.latency_objective_ms must be from 0 to an hour")
    for size in batching.preferred_batch_size:
        if not 1 <= size <= (batching.max_batch_size or MAX_ROWS):
            raise _invalid(f"preferred_batch_size {size} must be from 1 to max_batch_size")
    for step in (*message.before, *message.after):
        if step.WhichOneof("step") is None:
            raise _invalid("a step says nothing")


def _invalid(why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the variant's {MANIFEST} cannot be used: {why}; correct it and push the variant again",
        reason="MANIFEST_INVALID",
        field=MANIFEST,
    )
