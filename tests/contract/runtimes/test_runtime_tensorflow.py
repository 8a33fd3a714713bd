"""TensorFlow, Keras, LiteRT and OpenVINO on one model trained by Keras: one signature, one answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from small_models import Digits

from sealane.client import model_files
from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane.tensors import Array, TensorSpec
from sealane_worker.runtimes import RuntimeOptions, create_runtime

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]
tf = pytest.importorskip("tensorflow", reason="needs the [tensorflow] extra")

#: TensorFlow's own warnings while it converts.
QUIET = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Trained:
    """The model in every format, and what Keras answers."""

    folder: Path
    answers: Array


#: OpenVINO's int8 sums saturate on processors without VNNI (its documentation, "Saturation issue").
SATURATED = 0.95


@pytest.fixture(scope="module")
def trained(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    import keras

    folder = tmp_path_factory.mktemp("keras")
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input((64,), name="pixels"), *layers])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(digits.train, digits.train_labels, epochs=5, verbose=0)
    model.save(folder / "digits.keras")
    model.export(folder / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "digits.tflite").write_bytes(converter.convert())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None]] for row in digits.train[:200])
    (folder / "digits-int8.tflite").write_bytes(converter.convert())
    return Trained(folder, np.asarray(model(digits.test)))


@QUIET
@pytest.mark.parametrize(
    ("runtime", "file", "tolerance"),
    [
        ("tensorflow", "saved", 1e-5),
        ("keras", "digits.keras", 1e-5),
        ("litert", "digits.tflite", 1e-5),
        ("litert", "digits-int8.tflite", 0.15),
        ("openvino", "saved", 1e-5),
        ("openvino", "digits.tflite", 1e-5),
        ("openvino", "digits-int8.tflite", 0.15),
    ],
)
def test_every_runtime_answers_as_keras(
    runtime: str, file: str, tolerance: float, trained: Trained, digits: Digits
) -> None:
    loaded = create_runtime(runtime)
    signatures = {item.name: item for item in loaded.load(trained.folder / file, RuntimeOptions())}
    signature = signatures["serving_default"]
    assert signature.inputs == (TensorSpec("pixels", "FP32", (-1, 64)),)
    assert signature.outputs == (TensorSpec("output_0", "FP32", (-1, 10)),)
    for rows in (1, 5, len(digits.test)):
        answer = loaded.run({"pixels": digits.test[:rows]}, "serving_default")["output_0"]
        np.testing.assert_allclose(answer, trained.answers[:rows], atol=tolerance)
    alike = SATURATED if (runtime, file) == ("openvino", "digits-int8.tflite") else 0.98
    assert np.mean(answer.argmax(1) == trained.answers.argmax(1)) > alike
    loaded.close()


@QUIET
@pytest.mark.parametrize(
    ("file", "model_format", "variant"),
    [
        ("saved", pb.FORMAT_SAVED_MODEL, "savedmodel"),
        ("digits.keras", pb.FORMAT_KERAS, "keras"),
        ("digits.tflite", pb.FORMAT_LITERT, "litert-float"),
        ("digits-int8.tflite", pb.FORMAT_LITERT, "litert-int8"),
    ],
)
def test_push_tells_the_signature_that_the_worker_loads(
    file: str, model_format: pb.Format.ValueType, variant: str, trained: Trained
) -> None:
    found = model_files.inspect(trained.folder / file)
    assert (found.format, found.variant) == (model_format, variant)
    (signature,) = [item for item in found.signatures if item.name == "serving_default"]
    assert signature.inputs == (TensorSpec("pixels", "FP32", (-1, 64)),)
    assert signature.outputs == (TensorSpec("output_0", "FP32", (-1, 10)),)


@QUIET
def test_names_of_many_inputs_and_outputs_are_those_of_the_export(tmp_path: Path) -> None:
    import keras

    zed, alpha = keras.Input((3,), name="zed"), keras.Input((3,), name="alpha")
    outputs = {"sum": keras.layers.Add()([zed, alpha]), "difference": keras.layers.Subtract()([zed, alpha])}
    model = keras.Model([zed, alpha], outputs)
    model.save(tmp_path / "two.keras")
    model.export(tmp_path / "saved", verbose=False)
    (tmp_path / "two.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert())
    files = {"keras": "two.keras", "tensorflow": "saved", "litert": "two.tflite", "openvino": "two.tflite"}
    for name, file in files.items():
        runtime = create_runtime(name)
        signatures = {item.name: item for item in runtime.load(tmp_path / file, RuntimeOptions())}
        assert {spec.name for spec in signatures["serving_default"].inputs} == {"zed", "alpha"}, name
        sent = {"zed": np.full((2, 3), 5, np.float32), "alpha": np.ones((2, 3), np.float32)}
        answer = runtime.run(sent, "serving_default")
        assert answer["sum"].tolist() == [[6] * 3] * 2, name
        assert answer["difference"].tolist() == [[4] * 3] * 2, name


@QUIET
def test_keras_takes_a_dictionary_and_gives_a_list(tmp_path: Path) -> None:
    import keras

    told = {"b": keras.Input((2,), name="b"), "a": keras.Input((2,), name="a")}
    model = keras.Model(told, [keras.layers.Subtract()([told["a"], told["b"]]), told["a"]])
    model.save(tmp_path / "m.keras")
    runtime = create_runtime("keras")
    (signature,) = runtime.load(tmp_path, RuntimeOptions())
    sent = {"a": np.full((1, 2), 3, np.float32), "b": np.ones((1, 2), np.float32)}
    answer = runtime.run(sent, signature.name)
    assert [spec.name for spec in signature.outputs] == ["output_0", "output_1"]
    assert (answer["output_0"].tolist(), answer["output_1"].tolist()) == ([[2, 2]], [[3, 3]])


@QUIET
def test_keras_archives_with_code_are_refused(tmp_path: Path) -> None:
    import keras

    given = keras.Input((2,))
    model = keras.Model(given, keras.layers.Lambda(lambda x: x * 2)(given))
    model.save(tmp_path / "m.keras")
    with pytest.raises(FailedPrecondition) as caught:
        create_runtime("keras").load(tmp_path, RuntimeOptions())
    assert caught.value.reason == "MODEL_UNREADABLE"
    with pytest.raises(InvalidArgument, match="code of their own"):
        model_files.inspect(tmp_path / "m.keras")


@QUIET
@pytest.mark.parametrize("runtime", ["keras", "tensorflow"])
def test_a_file_that_is_no_model_is_refused(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes(b"nothing")
    with pytest.raises(FailedPrecondition) as caught:
        create_runtime(runtime).load(tmp_path, RuntimeOptions())
    assert caught.value.reason == "MODEL_UNREADABLE"


@QUIET
@pytest.mark.parametrize(("runtime", "file"), [("keras", "digits.keras"), ("tensorflow", "saved")])
def test_a_device_that_is_not_there_is_named_with_those_that_are(runtime: str, file: str, trained: Trained) -> None:
    with pytest.raises(FailedPrecondition, match=r"'tpu' is not present.*cpu") as caught:
        create_runtime(runtime).load(trained.folder / file, RuntimeOptions(device="tpu"))
    assert caught.value.reason == "DEVICE_NOT_PRESENT"


@QUIET
def test_answers_are_not_overwritten(trained: Trained, digits: Digits) -> None:
    for name, file in (("keras", "digits.keras"), ("tensorflow", "saved"), ("litert", "digits.tflite")):
        runtime = create_runtime(name)
        runtime.load(trained.folder / file, RuntimeOptions())
        first = runtime.run({"pixels": digits.test[:2]}, "serving_default")["output_0"]
        kept = first.copy()
        runtime.run({"pixels": digits.test[2:4]}, "serving_default")
        np.testing.assert_array_equal(first, kept)
