"""Every way in which tensors can be wrong, at the gateway and at a worker: the stated code, and nobody else harmed.

The cases are those of SECURITY 2.5; the right ones (every datatype, typed and raw, large, empty) stand beside them.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from light_site import CAMERA_A, CLOUD, EDGE, LightSite, running
from onnx import TensorProto, helper
from orphans import descendants

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tensorflow_pb2 as tf
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.protocols.tfserving_tensors import DT_OF_DATATYPE
from sealane.rpc.status import from_rpc_error
from sealane.tensors import NUMPY_OF, Array

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
#: Who serves the digits, and who the models that give back what they get.
DOORS = {"gateway": ("inference", "inference"), "worker": (EDGE, CLOUD)}
ONNX_OF = {
    "BOOL": TensorProto.BOOL, "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE, "BF16": TensorProto.BFLOAT16, "BYTES": TensorProto.STRING,
}  # fmt: skip


def identity(folder: Path, datatype: str) -> Path:
    """An ONNX model y = x."""
    sides = [helper.make_tensor_value_info(name, ONNX_OF[datatype], [None, None]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", sides[:1], sides[1:])
    file = folder / f"{datatype.lower()}.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    file.write_bytes(made.SerializeToString())
    return file


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with running(tmp_path_factory.mktemp("tensors")) as site:
        site.client.deployments.create(CAMERA_A, site.push(), data_class="restricted", residency=["site-a"])
        folder = tmp_path_factory.mktemp("models")
        for datatype in ONNX_OF:
            name = f"same-{datatype.lower()}"
            version = site.client.models.push(identity(folder, datatype), name)
            site.client.deployments.create(name, version.name, tier="cloud")
        for deployment in (CAMERA_A, *(f"same-{datatype.lower()}" for datatype in ONNX_OF)):
            site.client.deployments.wait(deployment, 60)
        yield site


class Door:
    """Connections that calls of a model go over: to the gateway, or to the workers that serve it."""

    def __init__(self, site: LightSite, places: tuple[str, str]) -> None:
        self._site = site
        self._channels = tuple(site.channel(place) for place in places)

    def __call__(self, path: str, body: bytes, seconds: float = 20.0) -> bytes:
        metadata = [("authorization", f"Bearer {self._site.client.token('sealane-inference')}")]
        channel = self._channels[b"same-" in body]
        answer: bytes = channel.unary_unary(path)(body, timeout=seconds, metadata=metadata)
        return answer


@pytest.fixture(scope="module", params=DOORS)
def door(site: LightSite, request: pytest.FixtureRequest) -> Door:
    return Door(site, DOORS[request.param])


def infer(**more: object) -> oip.ModelInferRequest:
    return openinference.encode_request(InferenceCall(Target(CAMERA_A), {"image": IMAGE}, **more))  # type: ignore[arg-type]


def changed(change: Callable[[oip.ModelInferRequest], object]) -> bytes:
    request = infer()
    change(request)
    return request.SerializeToString()


def shaped(*shape: int, content: bytes = b"") -> bytes:
    def change(request: oip.ModelInferRequest) -> None:
        request.inputs[0].ClearField("shape")
        request.inputs[0].shape.extend(shape)
        if content:
            request.raw_input_contents[0] = content

    return changed(change)


def retyped(datatype: str, content: bytes = b"") -> bytes:
    def change(request: oip.ModelInferRequest) -> None:
        request.inputs[0].datatype = datatype
        request.raw_input_contents[0] = content or request.raw_input_contents[0]

    return changed(change)


def typed(**contents: object) -> bytes:
    def change(request: oip.ModelInferRequest) -> None:
        del request.raw_input_contents[:]
        request.inputs[0].contents.CopyFrom(oip.InferTensorContents(**contents))  # type: ignore[arg-type]

    return changed(change)


def texts(*elements: bytes, shape: tuple[int, ...] = (1, 1), content: bytes | None = None) -> bytes:
    request = oip.ModelInferRequest(model_name="same-bytes")
    request.inputs.add(name="x", datatype="BYTES", shape=shape)
    raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    request.raw_input_contents.append(raw if content is None else content)
    return request.SerializeToString()


def many(count: int) -> bytes:
    def change(request: oip.ModelInferRequest) -> None:
        for number in range(count):
            request.inputs.add(name=f"x{number}", datatype="FP32", shape=[1])
            request.raw_input_contents.append(bytes(4))

    return changed(change)


#: Requests of the Open Inference Protocol that can never work.
OIP_CASES = {
    "wrong rank": shaped(1, 64),
    "wrong fixed dimension": shaped(1, 9, 8, 1, content=bytes(288)),
    "negative dimension": shaped(-1, 8, 8, 1),
    "product over int64": shaped(2**31, 2**31, 2**31, 1),
    "gigabytes declared with no bytes": shaped(2**30, 8, 8, 1, content=b"\0"),
    "zero beside what overflows": shaped(0, 2**62, 2**62, 1),
    "too few bytes": shaped(2, 8, 8, 1),
    "too many bytes": shaped(1, 8, 8, 1, content=bytes(260)),
    "raw and typed": changed(lambda request: request.inputs[0].contents.fp32_contents.append(1)),
    "neither raw nor typed": typed(),
    "too few typed": typed(fp32_contents=[1.0]),
    "typed in another field": typed(int_contents=[1] * 64),
    "unknown datatype": retyped("FP13"),
    "datatype in lower case": retyped("fp32"),
    "another datatype": retyped("INT32"),
    "another datatype of that size": retyped("UINT32"),
    "no datatype": retyped(""),
    "text of more than 1 MiB": texts(bytes((1 << 20) + 1)),
    "text that ends behind the content": texts(content=struct.pack("<I", 100) + b"x"),
    "text with half a length": texts(content=b"\x01\x00"),
    "too few texts": texts(b"a", shape=(3, 1)),
    "10,000 tensors": many(10_000),
    "300 tensors": many(300),
    "a name twice": changed(
        lambda request: (request.inputs.append(request.inputs[0]), request.raw_input_contents.append(bytes(256)))
    ),
    "no name": changed(lambda request: request.inputs[0].ClearField("name")),
    "missing input": changed(lambda request: (request.ClearField("inputs"), request.ClearField("raw_input_contents"))),
    "extra input": many(1),
    "raw contents for nobody": changed(lambda request: request.raw_input_contents.append(b"")),
    "batch 0": shaped(0, 8, 8, 1, content=b""),
    "batch 0 without bytes": changed(
        lambda request: (request.inputs[0].shape.__setitem__(0, 0), request.raw_input_contents.__setitem__(0, b""))
    ),
    "33 dimensions": shaped(*[1] * 33),
    "unknown output": changed(lambda request: request.outputs.add(name="nothing")),
    "output twice": changed(lambda request: [request.outputs.add(name="probabilities") for _ in range(2)]),
    "name that is no UTF-8": changed(lambda request: None).replace(b"image", b"im\xff\xfee"),
    "shared memory": changed(
        lambda request: request.inputs[0].parameters["shared_memory_region"].MergeFrom(
            oip.InferParameter(string_param="region")
        )
    ),
    "classification of 0": changed(
        lambda request: request.outputs.add(name="probabilities").parameters["classification"].MergeFrom(
            oip.InferParameter(int64_param=0)
        )
    ),
    "priority that is a text": changed(
        lambda request: request.parameters["priority"].MergeFrom(oip.InferParameter(string_param="high"))
    ),
}  # fmt: skip


def tensor(**fields: object) -> tf.TensorProto:
    shape = fields.pop("shape", (1, 8, 8, 1))
    assert isinstance(shape, tuple)
    dims = [tf.TensorShapeProto.Dim(size=size) for size in shape]
    return tf.TensorProto(
        **{"dtype": tf.DT_FLOAT, "tensor_shape": tf.TensorShapeProto(dim=dims), **fields}  # type: ignore[arg-type]
    )


def predict(model: str = CAMERA_A, name: str = "image", **fields: object) -> bytes:
    request = tfs.PredictRequest(model_spec=tfs.ModelSpec(name=model))
    request.inputs[name].CopyFrom(tensor(**fields))
    return request.SerializeToString()


CONTENT = IMAGE.tobytes()
#: Requests of TensorFlow Serving that can never work.
TFS_CASES = {
    "wrong rank": predict(shape=(64,), tensor_content=CONTENT),
    "wrong fixed dimension": predict(shape=(1, 9, 8, 1), tensor_content=bytes(288)),
    "negative dimension": predict(shape=(-1, 8, 8, 1), tensor_content=CONTENT),
    "product over int64": predict(shape=(2**31, 2**31, 2**31, 1), tensor_content=CONTENT),
    "gigabytes declared with one value": predict(shape=(2**30, 8, 8, 1), float_val=[1.0]),
    "gigabytes declared with none": predict(shape=(2**30, 8, 8, 1)),
    "too few bytes": predict(shape=(2, 8, 8, 1), tensor_content=CONTENT),
    "too many values": predict(float_val=[1.0] * 65),
    "values and content": predict(tensor_content=CONTENT, float_val=[1.0]),
    "values in another field": predict(int_val=[1] * 64),
    "no datatype": predict(dtype=tf.DT_INVALID, tensor_content=CONTENT),
    "unknown datatype": predict(dtype=77, tensor_content=CONTENT),
    "quantised without a scale": predict(dtype=tf.DT_QINT8, tensor_content=bytes(64)),
    "complex": predict(dtype=tf.DT_COMPLEX64, tensor_content=bytes(512)),
    "another datatype": predict(dtype=tf.DT_INT32, tensor_content=CONTENT),
    "text of more than 1 MiB": predict(
        "same-bytes", "x", dtype=tf.DT_STRING, shape=(1, 1), string_val=[bytes((1 << 20) + 1)]
    ),
    "one text for a million": predict(
        "same-bytes", "x", dtype=tf.DT_STRING, shape=(1000, 1000), string_val=[bytes(1 << 20)]
    ),
    "missing input": tfs.PredictRequest(model_spec=tfs.ModelSpec(name=CAMERA_A)).SerializeToString(),
    "another name": predict(name="picture", tensor_content=CONTENT),
    "batch 0": predict(shape=(0, 8, 8, 1)),
    "unknown rank": predict(tensor_shape=tf.TensorShapeProto(unknown_rank=True), tensor_content=CONTENT),
    "unknown output": tfs.PredictRequest(
        model_spec=tfs.ModelSpec(name=CAMERA_A), inputs={"image": tensor(tensor_content=CONTENT)},
        output_filter=["nothing"],
    ).SerializeToString(),
}  # fmt: skip
#: These are refused as messages, before a field of theirs is read.
NO_MESSAGE = {"name that is no UTF-8", "10,000 tensors"}
CASES = [(INFER, name, body) for name, body in OIP_CASES.items()]
CASES += [(PREDICT, name, body) for name, body in TFS_CASES.items()]
GOOD = infer().SerializeToString()


def right(door: Door) -> Array:
    return openinference.decode_response(oip.ModelInferResponse.FromString(door(INFER, GOOD)))["probabilities"]


def refused(door: Door, path: str, name: str, body: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door(path, body)
    error = from_rpc_error(caught.value)
    assert error.kind == "INVALID_ARGUMENT", (name, error.kind, error.message)
    assert error.message and "Traceback" not in error.message
    if name not in NO_MESSAGE:
        assert error.field, f"{error.message} names no field"


@pytest.mark.parametrize(("path", "name", "body"), CASES, ids=[f"{path[1:4]}: {name}" for path, name, _ in CASES])
def test_what_can_never_work_is_refused_and_the_next_call_answers(
    door: Door, path: str, name: str, body: bytes
) -> None:
    refused(door, path, name, body)
    assert right(door).shape == (1, 10)


def same(door: Door, path: str, array: Array, datatype: str) -> Array:
    """What a model that gives back what it gets answers."""
    call = InferenceCall(Target(f"same-{datatype.lower()}"), {"x": array})
    if path == INFER:
        answer = door(path, openinference.encode_request(call).SerializeToString())
        return openinference.decode_response(oip.ModelInferResponse.FromString(answer))["y"]
    answer = door(path, tfserving.encode_request(call).SerializeToString())
    return tfserving.decode_response(tfs.PredictResponse.FromString(answer))["y"]


def sample(datatype: str) -> Array:
    if datatype == "BYTES":  # what ONNX calls a string is text
        return np.array([[b"", "é".encode(), b"\n"], [b"a" * 1000, b"1", "日本".encode()]], dtype=object)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype == "BF16":
        return np.array([[0x3F80, 0x4000, 0x7F80], [0, 0x8000, 0x7FC0]], np.uint16).view(NUMPY_OF["BF16"])
    dtype = NUMPY_OF[datatype]
    bounds = np.finfo(dtype.name) if dtype.kind == "f" else np.iinfo(dtype.name)
    smallest = bounds.smallest_subnormal if dtype.kind == "f" else 1
    special = [np.nan, np.inf, -np.inf] if dtype.kind == "f" else [0, 1, 2]
    return np.array([[bounds.min, bounds.max, smallest], special], dtype)


@pytest.mark.parametrize("path", [INFER, PREDICT], ids=["oip", "tfs"])
@pytest.mark.parametrize("datatype", ONNX_OF)
def test_every_datatype_comes_back_as_it_went(door: Door, path: str, datatype: str) -> None:
    array = sample(datatype)
    back = same(door, path, array, datatype)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    if datatype == "BYTES":
        assert back.tolist() == array.tolist()
    else:
        assert back.tobytes() == array.tobytes()  # NaN, infinity and denormals as they are


TYPED = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_are_the_same_as_raw(door: Door, datatype: str) -> None:
    array = sample(datatype)
    request = oip.ModelInferRequest(model_name=f"same-{datatype.lower()}")
    contents = request.inputs.add(name="x", datatype=datatype, shape=array.shape).contents
    getattr(contents, TYPED[datatype]).extend(array.ravel().tolist())
    answer = oip.ModelInferResponse.FromString(door(INFER, request.SerializeToString()))
    raw = same(door, INFER, array, datatype)
    back = openinference.decode_response(answer)["y"]
    assert back.tolist() == raw.tolist() if datatype == "BYTES" else back.tobytes() == raw.tobytes()


@pytest.mark.parametrize("datatype", [name for name in ONNX_OF if name not in ("FP16", "BF16")])
def test_values_of_tensorflow_are_the_same_as_its_content(door: Door, datatype: str) -> None:
    array = sample(datatype)
    fields = {
        "BYTES": "string_val", "FP32": "float_val", "FP64": "double_val", "INT64": "int64_val", "BOOL": "bool_val",
        "UINT32": "uint32_val", "UINT64": "uint64_val",
    }  # fmt: skip
    field = fields.get(datatype, "int_val")
    body = predict(
        f"same-{datatype.lower()}", "x", dtype=DT_OF_DATATYPE[datatype], shape=array.shape,
        **{field: array.ravel().tolist()},
    )  # fmt: skip
    back = tfserving.decode_response(tfs.PredictResponse.FromString(door(PREDICT, body)))["y"]
    content = same(door, PREDICT, array, datatype)
    assert back.tolist() == content.tolist() if datatype == "BYTES" else back.tobytes() == content.tobytes()


def test_one_value_fills_a_tensor(door: Door) -> None:
    body = predict("same-fp32", "x", shape=(3, 2), float_val=[2.5])
    back = tfserving.decode_response(tfs.PredictResponse.FromString(door(PREDICT, body)))["y"]
    assert back.tolist() == [[2.5, 2.5]] * 3


@pytest.mark.parametrize("path", [INFER, PREDICT], ids=["oip", "tfs"])
def test_eight_large_images_in_one_call(door: Door, path: str) -> None:
    images = np.arange(8 * 150_528, dtype=np.float32).reshape(8, -1)
    np.testing.assert_array_equal(same(door, path, images, "FP32"), images)


def test_a_bad_request_harms_nobody_in_its_batch(door: Door) -> None:
    wanted, stop = right(door), threading.Event()
    wrong: list[object] = []
    answered = [0]

    def good() -> None:
        while not stop.is_set():
            try:
                same_again = np.allclose(right(door), wanted)
            except grpc.RpcError as error:
                wrong.append(error)
                return
            answered[0] += 1
            if not same_again:
                wrong.append("another answer")

    threads = [threading.Thread(target=good) for _ in range(6)]
    for thread in threads:
        thread.start()
    for path, name, body in CASES:
        refused(door, path, name, body)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert answered[0] > 10


def resident(pids: list[int]) -> int:
    """Bytes that these processes hold together."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_as_it_was(site: LightSite, door: Door) -> None:
    """Within 5 %, once the threads and buffers that are kept have been made: four rounds before, eight after."""
    places = {name: site.stack.child(name).pid for name in ("inference", EDGE, CLOUD)}
    families = {name: [pid, *descendants(pid)] for name, pid in places.items() if pid is not None}
    assert len(families) == 3
    held: dict[str, list[int]] = {name: [] for name in families}
    for _ in range(12):
        for path, name, body in CASES * 2:
            refused(door, path, name, body)
        right(door)
        for name, pids in families.items():
            held[name].append(resident(pids))
    print({name: [f"{size / 2**20:.1f} MiB" for size in sizes] for name, sizes in held.items()})
    for name, sizes in held.items():
        # The allocator gives memory back when it pleases: a round that holds less says what is needed.
        assert min(sizes[-4:]) <= max(sizes[2:5]) * 1.05, f"{name} has grown: {sizes}"
