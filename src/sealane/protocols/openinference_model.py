"""The Open Inference Protocol's extensions about a model: configuration, statistics, index, load and unload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sealane.compat.openinference.v2 import model_config_pb2 as config_pb
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument, Unimplemented
from sealane.protocols.call import ModelDescription
from sealane.tensors import TensorSpec

_TYPES = {"BYTES": config_pb.TYPE_STRING}
_KINDS = {"cpu": config_pb.ModelInstanceGroup.KIND_CPU, "cuda": config_pb.ModelInstanceGroup.KIND_GPU}
#: Parameters of a load or unload that say nothing that is not so here.
_HARMLESS = frozenset({"unload_dependents"})


@dataclass(frozen=True, slots=True)
class BatchingSettings:
    """How requests are put together; names and units as in Triton's ModelDynamicBatching."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    priority_levels: int = 0
    default_priority_level: int = 0
    delay: bool = False
    default_timeout_microseconds: int = 0
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class Control:
    """An input that the server fills for a model with sequences; `kind` is START, READY, END or CORRID."""

    input: str
    kind: str
    datatype: str


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that is kept from one request of a sequence to the next."""

    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SequenceSettings:
    """How a model with sequences is served."""

    max_idle_microseconds: int
    controls: tuple[Control, ...] = ()
    states: tuple[State, ...] = ()


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One model of a chain: its input to the chain's tensor, and its output to it."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a model is served.

    Args:
        runtime: what runs it.
        max_batch_size: most rows of a run; 0 where the first dimension is no batch.
        instances: copies on a worker.
        device: where they run.
        batching: how requests are put together.
        sequence: how its sequences are kept; None for a model without.
        steps: the models of a chain; empty for a single model.
        deterministic: whether equal requests share an answer.
        parameters: further facts.
    """

    runtime: str = ""
    max_batch_size: int = 0
    instances: int = 1
    device: str = "cpu"
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    sequence: SequenceSettings | None = None
    steps: tuple[EnsembleStep, ...] = ()
    deterministic: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Duration:
    """A number of events and the seconds that they took together."""

    count: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """What a model has done; `batches` maps rows of a run to how many there were and their seconds."""

    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    infer: Duration = Duration()
    shared: Duration = Duration()
    rows: int = 0
    executions: int = 0
    last_time: float = 0.0
    batches: Mapping[int, Duration] = field(default_factory=dict)
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the index; `state` is READY, LOADING or UNAVAILABLE."""

    name: str
    version: str
    state: str
    reason: str = ""


def encode_config(model: ModelDescription, settings: ModelSettings) -> oip.ModelConfigResponse:
    """The configuration of a model."""
    batched = settings.max_batch_size > 0
    config = config_pb.ModelConfig(
        name=model.name,
        platform="ensemble" if settings.steps else model.platform,
        backend=settings.runtime,
        max_batch_size=settings.max_batch_size,
        model_transaction_policy=config_pb.ModelTransactionPolicy(decoupled=False),
        response_cache=config_pb.ModelResponseCache(enable=settings.deterministic),
    )
    signature = model.signature()
    for spec in signature.inputs if signature is not None else ():
        config.input.add(name=spec.name, data_type=_type(spec.datatype), dims=_dims(spec, batched))
    for spec in signature.outputs if signature is not None else ():
        config.output.add(name=spec.name, data_type=_type(spec.datatype), dims=_dims(spec, batched))
    for name, value in settings.parameters.items():
        config.parameters[name].string_value = value
    if settings.steps:
        for step in settings.steps:
            config.ensemble_scheduling.step.add(
                model_name=step.model, model_version=-1, input_map=step.inputs, output_map=step.outputs
            )
        return oip.ModelConfigResponse(config=config)
    kind = _KINDS.get(settings.device.partition(":")[0], config_pb.ModelInstanceGroup.KIND_AUTO)
    config.instance_group.add(name=model.name, count=settings.instances, kind=kind)
    if settings.sequence is not None:
        config.sequence_batching.CopyFrom(_sequence_batching(settings.sequence))
    elif batched:
        config.dynamic_batching.CopyFrom(_dynamic_batching(settings.batching))
    return oip.ModelConfigResponse(config=config)


def encode_statistics(name: str, version: str, counts: ModelCounts) -> oip.ModelStatistics:
    """The statistics of a model."""
    statistics = oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=int(counts.last_time * 1000),
        inference_count=counts.rows,
        execution_count=counts.executions,
        inference_stats=oip.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            compute_input=oip.StatisticDuration(count=counts.infer.count),
            compute_infer=_duration(counts.infer),
            compute_output=oip.StatisticDuration(count=counts.infer.count),
            cache_hit=_duration(counts.shared),
        ),
    )
    for rows, spent in sorted(counts.batches.items()):
        statistics.batch_stats.add(
            batch_size=rows,
            compute_input=oip.StatisticDuration(count=spent.count),
            compute_infer=_duration(spent),
            compute_output=oip.StatisticDuration(count=spent.count),
        )
    if counts.memory_bytes:
        statistics.memory_usage.add(type="CPU", byte_size=counts.memory_bytes)
    return statistics


def add_statistics(parts: Iterable[oip.ModelStatistics]) -> oip.ModelStatistics:
    """The sum of what several workers tell of one model."""
    total = oip.ModelStatistics()
    batches: dict[int, oip.InferBatchStatistics] = {}
    memory: dict[tuple[str, int], oip.MemoryUsage] = {}
    for part in parts:
        total.name, total.version = part.name, part.version
        total.last_inference = max(total.last_inference, part.last_inference)
        total.inference_count += part.inference_count
        total.execution_count += part.execution_count
        _add(total.inference_stats, part.inference_stats)
        for batch in part.batch_stats:
            _add(batches.setdefault(batch.batch_size, oip.InferBatchStatistics(batch_size=batch.batch_size)), batch)
        for used in part.memory_usage:
            whole = memory.setdefault((used.type, used.id), oip.MemoryUsage(type=used.type, id=used.id))
            whole.byte_size += used.byte_size
    total.batch_stats.extend(batches[size] for size in sorted(batches))
    total.memory_usage.extend(memory[key] for key in sorted(memory))
    return total


def encode_index(entries: Iterable[IndexEntry], *, ready: bool = False) -> oip.RepositoryIndexResponse:
    """The index, or only those that are ready."""
    response = oip.RepositoryIndexResponse()
    for entry in sorted(entries, key=lambda entry: entry.name):
        if not ready or entry.state == "READY":
            response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
    return response


def repository_target(request: oip.RepositoryModelLoadRequest | oip.RepositoryModelUnloadRequest) -> str:
    """The model that a load or unload names, in Triton's field or in KServe's.

    Raises:
        InvalidArgument: none is named.
        Unimplemented: parameters that would replace its configuration or files.
    """
    name = request.model_name or request.repository_name
    if not name:
        raise InvalidArgument(
            "the request names no model; set model_name", reason="MODEL_NAME_MISSING", field="model_name"
        )
    refused = sorted(set(request.parameters) - _HARMLESS)
    if refused:
        raise Unimplemented(
            f"parameters {', '.join(refused)[:200]} are not supported: a model's files and configuration are a version "
            "of the registry; push one with 'sealane models push'",
            reason="REPOSITORY_PARAMETERS",
        )
    return name


def _type(datatype: str) -> config_pb.DataType.ValueType:
    return _TYPES.get(datatype) or config_pb.DataType.Value(f"TYPE_{datatype}")


def _dims(spec: TensorSpec, batched: bool) -> Sequence[int]:
    dims = spec.shape[1:] if batched else spec.shape
    return dims or (1,)  # Triton has no configuration of rank 0


def _duration(spent: Duration) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=spent.count, ns=int(spent.seconds * 1e9))


def _add(
    total: oip.InferStatistics | oip.InferBatchStatistics, part: oip.InferStatistics | oip.InferBatchStatistics
) -> None:
    """Add the durations of `part`, field by field."""
    for descriptor, value in part.ListFields():
        if isinstance(value, oip.StatisticDuration):
            whole = getattr(total, descriptor.name)
            whole.count += value.count
            whole.ns += value.ns


def _dynamic_batching(settings: BatchingSettings) -> config_pb.ModelDynamicBatching:
    return config_pb.ModelDynamicBatching(
        preferred_batch_size=settings.preferred_batch_size,
        max_queue_delay_microseconds=settings.max_queue_delay_microseconds,
        priority_levels=settings.priority_levels,
        default_priority_level=settings.default_priority_level,
        default_queue_policy=config_pb.ModelQueuePolicy(
            timeout_action=config_pb.ModelQueuePolicy.DELAY if settings.delay else config_pb.ModelQueuePolicy.REJECT,
            default_timeout_microseconds=settings.default_timeout_microseconds,
            allow_timeout_override=True,
            max_queue_size=settings.max_queue_size,
        ),
    )


def _sequence_batching(settings: SequenceSettings) -> config_pb.ModelSequenceBatching:
    message = config_pb.ModelSequenceBatching(max_sequence_idle_microseconds=settings.max_idle_microseconds)
    kinds = config_pb.ModelSequenceBatching.Control.Kind
    for control in settings.controls:
        kind = kinds.Value(f"CONTROL_SEQUENCE_{control.kind}")
        message.control_input.add(name=control.input).control.add(kind=kind, data_type=_type(control.datatype))
    for state in settings.states:
        message.state.add(
            input_name=state.input, output_name=state.output, data_type=_type(state.datatype), dims=state.shape
        )
    return message
