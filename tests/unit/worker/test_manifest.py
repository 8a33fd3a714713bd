"""The serving manifest and the recorded requests of a variant, as a worker reads them from its files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from sealane.client.model_companions import warm_up
from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols import tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.tensors import Signature, TensorSpec
from sealane_worker.manifest import TENSORFLOW_WARM_UP, WARM_UP, read_serving, read_warm_up
from sealane_worker.model.queueing import DELAY, Batching
from sealane_worker.spec import Serving

X = np.arange(6, dtype=np.float32).reshape(2, 3)
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)), TensorSpec("t", "BYTES", (-1,))), ())


def written(folder: Path, fields: object) -> Path:
    (folder / "sealane.json").write_text(json.dumps(fields))
    return folder


def test_a_variant_that_says_nothing_is_served_with_the_defaults(tmp_path: Path) -> None:
    assert read_serving(tmp_path) == Serving()
    assert read_warm_up(tmp_path) == ()


def test_what_it_says_is_taken_in_tritons_names(tmp_path: Path) -> None:
    batching = {
        "max_batch_size": 8,
        "preferred_batch_size": [4, 8],
        "max_queue_delay_microseconds": 200,
        "priority_levels": 3,
        "timeout_action": "TIMEOUT_ACTION_DELAY",
        "default_timeout_microseconds": 5000,
        "max_queue_size": 100,
        "latency_objective_ms": 20,
    }
    steps = {"before": [{"decode_image": {"input": "image"}}], "after": [{"top_k": {"input": "scores", "k": 3}}]}
    found = read_serving(
        written(tmp_path, {"threads": 2, "instances": 3, "dynamic_batching": batching, "device": "cuda", **steps})
    )
    assert (found.threads, found.instances, found.device) == (2, 3, "cuda")
    assert found.batching == Batching(8, (4, 8), 200, 3, 0, DELAY, 5000, 100, 0, 20.0)
    assert found.before == ({"decode_image": {"input": "image"}},)
    assert found.after == ({"top_k": {"input": "scores", "k": 3}},)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"thread": 1}, "thread"),
        ({"threads": "many"}, "threads"),
        ({"threads": -1}, "threads"),
        ({"instances": 1000}, "instances"),
        ({"dynamic_batching": {"max_batch_size": 4, "preferred_batch_size": [8]}}, "preferred_batch_size 8"),
        ({"dynamic_batching": {"priority_levels": 2, "default_priority_level": 3}}, "default_priority_level"),
        ({"dynamic_batching": {"latency_objective_ms": "NaN"}}, "latency_objective_ms"),
        ({"before": [{}]}, "a step says nothing"),
        ([], "sealane.json"),
    ],
)
def test_what_cannot_be_is_told_with_the_field(tmp_path: Path, fields: object, told: str) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        read_serving(written(tmp_path, fields))
    assert refused.value.reason == "MANIFEST_INVALID"
    assert told in refused.value.message


def test_requests_recorded_by_the_sdk_are_read_by_the_worker(tmp_path: Path) -> None:
    texts = np.array([b"a", b"\x00\xff"], np.object_)
    (tmp_path / WARM_UP).write_bytes(warm_up([{"x": X, "t": texts}], [SIGNATURE]))
    (found,) = read_warm_up(tmp_path)
    np.testing.assert_array_equal(found.inputs["x"], X)
    assert (found.inputs["t"].tolist(), found.signature) == ([b"a", b"\x00\xff"], "serving_default")
    with pytest.raises(InvalidArgument):
        warm_up([{"y": X}], [SIGNATURE])


def record(message: bytes) -> bytes:
    return struct.pack("<QI", len(message), 0) + message + struct.pack("<I", 0)


def prediction_log(call: InferenceCall) -> bytes:
    """PredictionLog.predict_log = 6, PredictLog.request = 1 (prediction_log.proto)."""
    request = tfserving.encode_request(call).SerializeToString()
    for field in (1, 6):
        request = bytes([field << 3 | 2]) + _varint(len(request)) + request
    return request


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def test_the_warm_up_file_of_tensorflow_serving_is_read(tmp_path: Path) -> None:
    file = tmp_path / TENSORFLOW_WARM_UP
    file.parent.mkdir()
    calls = [InferenceCall(Target("m", signature="s"), {"x": X * index}) for index in range(3)]
    file.write_bytes(b"".join(record(prediction_log(call)) for call in calls))
    found = read_warm_up(tmp_path)
    assert [item.signature for item in found] == ["s"] * 3
    for index, item in enumerate(found):
        np.testing.assert_array_equal(item.inputs["x"], X * index)


def test_a_warm_up_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    good = record(prediction_log(InferenceCall(Target("m"), {"x": X})))
    file = tmp_path / TENSORFLOW_WARM_UP
    file.parent.mkdir()
    for bad in (good[:-10], good[:5], record(b"\xff\xff\xff"), record(b"\x32\x7f")):
        file.write_bytes(bad)
        with pytest.raises(FailedPrecondition) as refused:
            read_warm_up(tmp_path)
        assert refused.value.reason == "WARM_UP_INVALID"
    file.write_bytes(good * 1001)
    with pytest.raises(FailedPrecondition, match="1001"):
        read_warm_up(tmp_path)
