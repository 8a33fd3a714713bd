"""ONNX Runtime and OpenVINO: answers of the framework that trained, every datatype, refusals."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from onnx import TensorProto, helper
from small_models import Digits, Perceptron, save_onnx

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.tensors import NUMPY_OF, Array, TensorSpec
from sealane_worker.runtimes import Runtime, RuntimeOptions, create_runtime

BOTH = pytest.mark.parametrize("name", ["onnxruntime", "openvino"])


def loaded(name: str, path: Path, **options: int) -> Runtime:
    runtime = create_runtime(name)
    runtime.load(path, RuntimeOptions(**options))
    return runtime


@BOTH
def test_answers_are_those_of_the_framework_that_trained(
    name: str, onnx_digits: Path, digits: Digits, perceptron: Perceptron
) -> None:
    runtime = create_runtime(name)
    (signature,) = runtime.load(onnx_digits, RuntimeOptions())
    assert signature.name == "serving_default"
    assert signature.inputs == (TensorSpec("pixels", "FP32", (-1, 64)),)
    assert signature.outputs == (TensorSpec("probabilities", "FP32", (-1, 10)),)
    for rows in (1, 7, len(digits.test)):
        answer = runtime.run({"pixels": digits.test[:rows]}, signature.name)["probabilities"]
        np.testing.assert_allclose(answer, perceptron.answers[:rows], atol=1e-5)
    accuracy = np.mean(answer.argmax(1) == digits.test_labels)
    assert accuracy > 0.9


def test_openvino_runs_its_own_format_from_a_folder(
    onnx_digits: Path, digits: Digits, perceptron: Perceptron, tmp_path: Path
) -> None:
    ov.save_model(ov.Core().read_model(str(onnx_digits)), str(tmp_path / "digits.xml"), compress_to_fp16=False)
    (tmp_path / "package").mkdir()
    (tmp_path / "sealane.json").write_text("{}")
    runtime = loaded("openvino", tmp_path)
    answer = runtime.run({"pixels": digits.test}, "serving_default")["probabilities"]
    np.testing.assert_allclose(answer, perceptron.answers, atol=1e-5)


@BOTH
def test_many_threads_get_their_own_answers(
    name: str, onnx_digits: Path, digits: Digits, perceptron: Perceptron
) -> None:
    runtime = loaded(name, onnx_digits, threads=1, instances=4)
    wrong: list[int] = []

    def ask(place: int) -> None:
        for _ in range(50):
            rows = digits.test[place : place + 3]
            answer = runtime.run({"pixels": rows}, "serving_default")["probabilities"]
            if not np.allclose(answer, perceptron.answers[place : place + 3], atol=1e-5):
                wrong.append(place)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(0, 80, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@BOTH
def test_an_answer_is_not_overwritten_by_the_next_run(name: str, onnx_digits: Path, digits: Digits) -> None:
    runtime = loaded(name, onnx_digits)
    first = runtime.run({"pixels": digits.test[:4]}, "serving_default")["probabilities"]
    kept = first.copy()
    runtime.run({"pixels": digits.test[4:8]}, "serving_default")
    np.testing.assert_array_equal(first, kept)


@BOTH
def test_an_input_that_is_given_back_is_a_copy(name: str, tmp_path: Path) -> None:
    told = (TensorProto.FLOAT, ["rows"])
    file = save_onnx(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"x": told}, {"y": told})
    runtime = loaded(name, file)
    sent = np.ones(3, np.float32)
    answer = runtime.run({"x": sent}, "serving_default")["y"]
    sent[:] = 7
    np.testing.assert_array_equal(answer, np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("name", "onnx_type", "datatype"),
    [
        (name, getattr(TensorProto, onnx_type), datatype)
        for name in ("onnxruntime", "openvino")
        for onnx_type, datatype in {
            "FLOAT16": "FP16",
            "DOUBLE": "FP64",
            "INT8": "INT8",
            "UINT8": "UINT8",
            "INT32": "INT32",
            "INT64": "INT64",
            "UINT64": "UINT64",
            "BOOL": "BOOL",
        }.items()
    ],
)
def test_numbers_of_every_type_pass_unchanged(name: str, onnx_type: int, datatype: str, tmp_path: Path) -> None:
    told = (onnx_type, ["rows", 2])
    file = save_onnx(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"x": told}, {"y": told})
    runtime = create_runtime(name)
    (signature,) = runtime.load(file, RuntimeOptions())
    assert signature.inputs[0].datatype == signature.outputs[0].datatype == datatype
    sent: Array = np.array([[0, 1], [1, 0]]).astype(NUMPY_OF[datatype])
    answer = runtime.run({"x": sent}, signature.name)["y"]
    assert answer.dtype == NUMPY_OF[datatype]
    np.testing.assert_array_equal(answer, sent)


@BOTH
def test_bfloat16_travels_as_its_bits(name: str, tmp_path: Path) -> None:
    told = (TensorProto.BFLOAT16, ["rows", 2])
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "f"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.BFLOAT16),
    ]
    file = save_onnx(tmp_path / "m.onnx", nodes, {"x": told}, {"y": told})
    runtime = create_runtime(name)
    (signature,) = runtime.load(file, RuntimeOptions())
    assert signature.inputs[0].datatype == "BF16"
    bits = np.array([[0x3F80, 0x4000]], np.uint16)  # 1 and 2
    answer = runtime.run({"x": bits.view(NUMPY_OF["BF16"])}, signature.name)["y"]
    assert answer.dtype == NUMPY_OF["BF16"]
    np.testing.assert_array_equal(answer.view(np.uint16), [[0x4000, 0x4080]])


def texts_model(folder: Path) -> Path:
    told = (TensorProto.STRING, ["rows"])
    return save_onnx(folder / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"x": told}, {"y": told})


def test_texts_come_as_bytes(tmp_path: Path) -> None:
    runtime = create_runtime("onnxruntime")
    (signature,) = runtime.load(texts_model(tmp_path), RuntimeOptions())
    assert signature.inputs[0].datatype == "BYTES"
    sent = np.array([b"one", "zw\u00f6lf".encode(), b""], np.object_)
    answer = runtime.run({"x": sent}, signature.name)["y"]
    assert answer.tolist() == sent.tolist()


def test_openvino_refuses_texts_which_would_end_its_process(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="another runtime") as caught:
        create_runtime("openvino").load(texts_model(tmp_path), RuntimeOptions())
    assert caught.value.reason == "MODEL_SIGNATURES"


def test_onnx_runtime_refuses_bytes_that_are_no_text(tmp_path: Path) -> None:
    runtime = loaded("onnxruntime", texts_model(tmp_path))
    with pytest.raises(InvalidArgument, match="UTF-8"):
        runtime.run({"x": np.array([b"\xff\xfe"], np.object_)}, "serving_default")


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    told = (TensorProto.FLOAT, ["rows", 2])
    nodes = [helper.make_node("Sub", ["b", "a"], ["difference"]), helper.make_node("Add", ["a", "b"], ["sum"])]
    file = save_onnx(tmp_path / "m.onnx", nodes, {"b": told, "a": told}, {"sum": told, "difference": told})
    one, two = np.ones((1, 2), np.float32), np.full((1, 2), 2, np.float32)
    for name in ("onnxruntime", "openvino"):
        answer = loaded(name, file).run({"a": one, "b": two}, "serving_default")
        assert answer["difference"].tolist() == [[1, 1]], name
        assert answer["sum"].tolist() == [[3, 3]], name


@BOTH
def test_a_device_that_is_not_there_is_named_with_those_that_are(name: str, onnx_digits: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"'cuda' is not present.*cpu") as caught:
        create_runtime(name).load(onnx_digits, RuntimeOptions(device="cuda"))
    assert caught.value.reason == "DEVICE_NOT_PRESENT"


@BOTH
@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x07"])
def test_a_file_that_is_no_model_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(FailedPrecondition) as caught:
        create_runtime(name).load(tmp_path, RuntimeOptions())
    assert caught.value.reason == "MODEL_UNREADABLE"


@BOTH
def test_a_model_cut_anywhere_is_refused_or_loads_nothing_wrong(name: str, onnx_digits: Path, tmp_path: Path) -> None:
    content = onnx_digits.read_bytes()
    file = tmp_path / "m.onnx"
    for size in range(0, len(content), len(content) // 12):
        file.write_bytes(content[:size])
        with pytest.raises(FailedPrecondition) as caught:
            create_runtime(name).load(file, RuntimeOptions())
        assert caught.value.reason in ("MODEL_UNREADABLE", "MODEL_SIGNATURES")


@pytest.mark.parametrize("count", [0, 2])
def test_a_folder_has_to_hold_one_model(count: int, onnx_digits: Path, tmp_path: Path) -> None:
    for place in range(count):
        (tmp_path / f"{place}.onnx").write_bytes(onnx_digits.read_bytes())
    with pytest.raises(FailedPrecondition, match=f"this one has {count}"):
        create_runtime("onnxruntime").load(tmp_path, RuntimeOptions())


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["y"])]
    value = helper.make_value_info(
        "y", helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], [value])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FailedPrecondition, match="ZipMap") as caught:
        create_runtime("onnxruntime").load(tmp_path, RuntimeOptions())
    assert caught.value.reason == "MODEL_SIGNATURES"


def test_inputs_that_the_layers_cannot_take_are_the_callers_fault(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["a", "b"], ["y"])]
    free = (TensorProto.FLOAT, ["n", "m"])
    file = save_onnx(tmp_path / "m.onnx", nodes, {"a": free, "b": (TensorProto.FLOAT, ["k", "l"])}, {"y": free})
    runtime = loaded("onnxruntime", file)
    with pytest.raises(InvalidArgument) as caught:
        runtime.run({"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 5), np.float32)}, "serving_default")
    assert caught.value.field == "inputs"
    # And the next caller is served.
    answer = runtime.run({"a": np.ones((1, 2), np.float32), "b": np.ones((2, 1), np.float32)}, "serving_default")
    assert answer["y"].tolist() == [[2]]


@BOTH
def test_an_input_of_another_rank_is_the_callers_fault(name: str, onnx_digits: Path, digits: Digits) -> None:
    runtime = loaded(name, onnx_digits)
    with pytest.raises(InvalidArgument) as caught:
        runtime.run({"pixels": digits.test[0]}, "serving_default")
    assert caught.value.field == "inputs"
    assert runtime.run({"pixels": digits.test[:1]}, "serving_default")["probabilities"].shape == (1, 10)


@BOTH
def test_a_closed_model_says_so(name: str, onnx_digits: Path, digits: Digits) -> None:
    runtime = loaded(name, onnx_digits)
    runtime.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        runtime.run({"pixels": digits.test[:1]}, "serving_default")


def test_openvino_keeps_the_names_of_a_model_that_it_simplifies(tmp_path: Path) -> None:
    """Compiling takes the Flatten and the Identity out and gives their names to what is left."""
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("Relu", ["flat"], ["active"]),
        helper.make_node("Identity", ["active"], ["scores"]),
    ]
    spec = (TensorProto.FLOAT, ["rows", 4])
    save_onnx(tmp_path / "m.onnx", nodes, {"pixels": spec}, {"scores": spec})
    runtime = create_runtime("openvino")
    (signature,) = runtime.load(tmp_path / "m.onnx", RuntimeOptions())
    assert [item.name for item in (*signature.inputs, *signature.outputs)] == ["pixels", "scores"]
    assert runtime.run({"pixels": np.ones((2, 4), np.float32)}, signature.name)["scores"].shape == (2, 4)
