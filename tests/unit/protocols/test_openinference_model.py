"""Configuration, statistics and index in the protocol's words."""

from __future__ import annotations

import pytest

from sealane.compat.openinference.v2 import model_config_pb2 as config_pb
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument, Unimplemented
from sealane.protocols import openinference_model as model
from sealane.protocols.call import ModelDescription
from sealane.protocols.openinference_stream import stream_answer, stream_error
from sealane.tensors import NUMPY_OF, Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "BYTES", (-1,)),))
DESCRIPTION = ModelDescription("m", ("3",), "onnxruntime_onnx", (SIGNATURE,))


def test_dimensions_leave_out_the_batch_where_there_is_one() -> None:
    batched = model.encode_config(DESCRIPTION, model.ModelSettings(max_batch_size=8)).config
    assert [list(item.dims) for item in (batched.input[0], batched.output[0])] == [[4], [1]]
    assert (batched.output[0].data_type, batched.max_batch_size) == (config_pb.TYPE_STRING, 8)
    whole = model.encode_config(DESCRIPTION, model.ModelSettings()).config
    assert list(whole.input[0].dims) == [-1, 4]
    assert whole.WhichOneof("scheduling_choice") is None


@pytest.mark.parametrize("datatype", sorted(NUMPY_OF))
def test_every_datatype_has_a_name(datatype: str) -> None:
    signature = Signature((TensorSpec("x", datatype, (1,)),), ())
    config = model.encode_config(ModelDescription("m", (), "", (signature,)), model.ModelSettings()).config
    wanted = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    assert config_pb.DataType.Name(config.input[0].data_type) == wanted


def test_batching_sequences_and_chains() -> None:
    batching = model.BatchingSettings((4, 8), 100, 3, 2, True, 500, 10)
    config = model.encode_config(DESCRIPTION, model.ModelSettings(max_batch_size=8, batching=batching)).config
    told = config.dynamic_batching
    assert (list(told.preferred_batch_size), told.priority_levels) == ([4, 8], 3)
    assert told.default_queue_policy.timeout_action == config_pb.ModelQueuePolicy.DELAY
    sequence = model.SequenceSettings(
        60_000_000, (model.Control("start", "START", "INT32"),), (model.State("in", "out", "FP32", (-1, 2)),)
    )
    config = model.encode_config(DESCRIPTION, model.ModelSettings(max_batch_size=8, sequence=sequence)).config
    (control,) = config.sequence_batching.control_input
    assert control.control[0].kind == config_pb.ModelSequenceBatching.Control.CONTROL_SEQUENCE_START
    assert config.sequence_batching.state[0].output_name == "out"
    steps = (model.EnsembleStep("a", {"x": "raw"}, {"y": "mid"}), model.EnsembleStep("b", {"x": "mid"}, {"y": "end"}))
    config = model.encode_config(DESCRIPTION, model.ModelSettings(steps=steps)).config
    assert config.platform == "ensemble"
    assert [dict(step.input_map) for step in config.ensemble_scheduling.step] == [{"x": "raw"}, {"x": "mid"}]
    assert not config.instance_group


def test_statistics_of_several_workers_add_up() -> None:
    def part(seconds: float, rows: int) -> oip.ModelStatistics:
        counts = model.ModelCounts(
            success=model.Duration(2, seconds),
            infer=model.Duration(2, seconds),
            rows=rows,
            executions=2,
            last_time=seconds,
            batches={rows // 2: model.Duration(2, seconds), 64: model.Duration(1, 1.0)},
            memory_bytes=1000,
        )
        return model.encode_statistics("m", "3", counts)

    total = model.add_statistics([part(0.5, 4), part(1.5, 8)])
    assert (total.name, total.version, total.last_inference) == ("m", "3", 1500)
    assert (total.inference_count, total.execution_count) == (12, 4)
    assert (total.inference_stats.success.count, total.inference_stats.success.ns) == (4, 2_000_000_000)
    batches = {batch.batch_size: batch.compute_infer.count for batch in total.batch_stats}
    assert batches == {2: 2, 4: 2, 64: 2}
    assert [used.byte_size for used in total.memory_usage] == [2000]


def test_the_index_is_sorted_and_may_hold_what_is_ready_alone() -> None:
    entries = [model.IndexEntry("b", "1", "READY"), model.IndexEntry("a", "2", "UNAVAILABLE", "why")]
    assert [item.name for item in model.encode_index(entries).models] == ["a", "b"]
    assert [item.name for item in model.encode_index(entries, ready=True).models] == ["b"]


def test_both_dialects_name_a_model() -> None:
    assert model.repository_target(oip.RepositoryModelLoadRequest(model_name="m")) == "m"
    assert model.repository_target(oip.RepositoryModelLoadRequest(repository_name="m")) == "m"
    both = oip.RepositoryModelUnloadRequest(repository_name="r", model_name="m")
    both.parameters["unload_dependents"].bool_param = True
    assert model.repository_target(both) == "m"
    with pytest.raises(InvalidArgument):
        model.repository_target(oip.RepositoryModelLoadRequest())
    with pytest.raises(Unimplemented, match=r"file:1/model\.onnx"):
        request = oip.RepositoryModelLoadRequest(model_name="m")
        request.parameters["file:1/model.onnx"].bytes_param = b"x"
        model.repository_target(request)


@pytest.mark.parametrize("size", [0, 1, 90, 127, 128, 20_000, 3_000_000])
def test_answers_of_streams_are_made_without_parsing(size: int) -> None:
    answer = oip.ModelInferResponse(model_name="m", id="7", raw_output_contents=[bytes(size)])
    answer.parameters["k"].int64_param = 5
    wrapped = oip.ModelStreamInferResponse.FromString(stream_answer(answer.SerializeToString()))
    assert wrapped.infer_response.parameters.pop("triton_final_response").bool_param
    assert wrapped == oip.ModelStreamInferResponse(infer_response=answer)


def test_errors_of_streams_say_which_request_they_are_about() -> None:
    error = oip.ModelStreamInferResponse.FromString(stream_error("no", "7"))
    assert (error.error_message, error.infer_response.id) == ("no", "7")
