"""Base paths of TensorFlow Serving: SavedModels that TensorFlow wrote, records that its own classes wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sealane.client import layouts, model_companions, model_files
from sealane.client.layouts import Outgoing, records
from sealane.errors import FailedPrecondition, InvalidArgument

tf = pytest.importorskip("tensorflow", reason="needs the [tensorflow] extra")
from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_log_pb2  # noqa: E402

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


class Scaled(tf.Module):
    """Times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = tf.Variable(factor)

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def __call__(self, x: object) -> object:
        return {"y": x * self.factor}


def predict_log(rows: np.ndarray, signature: str = "") -> bytes:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "scaled"
    request.model_spec.signature_name = signature
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(rows))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    return log.SerializeToString()


def recorded(folder: Path, *logs: bytes) -> Path:
    file = folder / records.FILE
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in logs:
            writer.write(log)
    return file


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Versions 3 and 12, the latter with a request."""
    for number in (3, 12):
        tf.saved_model.save(Scaled(float(number)), str(tmp_path / f"scaled/{number}"))
    (tmp_path / "scaled/notes").mkdir()
    recorded(tmp_path / "scaled/12", predict_log(ROWS))
    return tmp_path / "scaled"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("", ["scaled/12"]), ("latest", ["scaled/12"]), ("all", ["scaled/3", "scaled/12"]), ("3", ["scaled/3"])],
)
def test_versions_are_numbers_and_not_words(wanted: str, found: list[str], base: Path) -> None:
    assert [one.source for one in layouts.read(base, versions=wanted)] == found
    with pytest.raises(InvalidArgument, match=r"it has \[3, 12\]"):
        layouts.read(base, versions="4")


def test_recorded_requests_stay_where_workers_look_for_them(base: Path) -> None:
    (one,) = layouts.read(base)
    assert records.FILE in one.model.files
    calls, others = records.read(one.model.files[records.FILE].read_bytes())
    np.testing.assert_array_equal(calls[0].inputs["x"], ROWS)
    assert others == () and one.notes == () and one.examples == ()


def test_requests_of_other_kinds_are_told(base: Path) -> None:
    other = prediction_log_pb2.PredictionLog(
        classify_log=prediction_log_pb2.ClassifyLog(request=classification_pb2.ClassificationRequest())
    )
    recorded(base / "12", predict_log(ROWS), other.SerializeToString())
    (one,) = layouts.read(base)
    assert one.notes == ("recorded requests that are no Predict (classify) are not run",)


@pytest.mark.parametrize(
    "log", [predict_log(ROWS[:, :3]), predict_log(ROWS.astype(np.float64)), predict_log(ROWS, "no")]
)
def test_a_request_that_the_model_refuses_is_refused_here(log: bytes, base: Path) -> None:
    recorded(base / "12", predict_log(ROWS), log)
    with pytest.raises(InvalidArgument, match="recorded request 2") as caught:
        layouts.read(base)
    assert caught.value.reason == "WARM_UP_INVALID"


def test_records_are_tensorflows_own_both_ways(tmp_path: Path) -> None:
    messages = [b"", b"one", bytes(range(256)) * 40]
    (tmp_path / "ours").write_bytes(records.join(messages))
    assert [item.numpy() for item in tf.data.TFRecordDataset(str(tmp_path / "ours"))] == messages
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for message in messages:
            writer.write(message)
    assert list(records.split((tmp_path / "theirs").read_bytes())) == messages


def test_an_export_is_loaded_by_tensorflow_and_its_records_by_its_own_classes(base: Path, tmp_path: Path) -> None:
    (one,) = layouts.read(base)
    (tmp_path / "warmup.binpb").write_bytes(model_companions.warm_up([{"x": ROWS + 1}], one.model.signatures))
    files = {**one.model.files, "warmup.binpb": tmp_path / "warmup.binpb", "MLmodel": tmp_path / "warmup.binpb"}
    model = Outgoing("scaled", 2, one.model.format, files, one.model.signatures)
    place, notes = layouts.write(model, tmp_path / "out", "tensorflow-serving")
    assert (place, notes) == (tmp_path / "out", ())
    answer = tf.saved_model.load(str(place / "2")).signatures["serving_default"](x=tf.constant(ROWS))
    np.testing.assert_array_equal(answer["y"].numpy(), ROWS * 12)
    logs = [
        prediction_log_pb2.PredictionLog.FromString(item.numpy())
        for item in tf.data.TFRecordDataset(str(place / "2" / records.FILE))
    ]
    asked = [tf.make_ndarray(log.predict_log.request.inputs["x"]) for log in logs]
    np.testing.assert_array_equal(asked, [ROWS, ROWS + 1])
    assert {log.predict_log.request.model_spec.name for log in logs} == {"scaled"}
    (back,) = layouts.read(place)
    kept = {name: file.read_bytes() for name, file in back.model.files.items() if name != records.FILE}
    assert kept == {name: file.read_bytes() for name, file in one.model.files.items() if name != records.FILE}
    with pytest.raises(FailedPrecondition, match="there already"):
        layouts.write(model, tmp_path / "out", "tensorflow-serving")


def test_a_savedmodel_goes_to_triton_and_back(base: Path, tmp_path: Path) -> None:
    (one,) = layouts.read(base)
    model = Outgoing("scaled", 2, one.model.format, one.model.files, one.model.signatures)
    place, _ = layouts.write(model, tmp_path / "out", "triton")
    answer = tf.saved_model.load(str(place / "2/model.savedmodel")).signatures["serving_default"](x=tf.constant(ROWS))
    np.testing.assert_array_equal(answer["y"].numpy(), ROWS * 12)
    (back,) = layouts.read(tmp_path / "out")
    ours = {name: file.read_bytes() for name, file in back.model.files.items() if name != "sealane.json"}
    assert ours == {name: file.read_bytes() for name, file in one.model.files.items()}


def test_a_litert_version_comes_over(tmp_path: Path) -> None:
    light = Path(__file__).parents[3] / "examples/digits/light/litert-float.tflite"
    (tmp_path / "base/1").mkdir(parents=True)
    (tmp_path / "base/1/model.tflite").write_bytes(light.read_bytes())
    (one,) = layouts.read(tmp_path / "base")
    assert one.model.signatures == model_files.inspect(light).signatures
