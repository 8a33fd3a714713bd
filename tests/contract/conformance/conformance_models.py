"""Models of the conformance matrix: each is small, and its answers follow from its inputs by a rule."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from onnx import TensorProto, helper, numpy_helper

#: Datatype of the Open Inference Protocol -> that of ONNX, whose strings are no bytes: those go to TensorFlow.
DATATYPES = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
}
#: A run of the slow model takes about so long on this machine: callers give up after a tenth of it.
_SLOW_SECONDS, _PROBE_TURNS = 0.4, 500

_SAVED_MODELS = """
import sys, tensorflow as tf

class Estimator(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def scores(self, x):
        return {"scores": x[:, :3], "classes": tf.tile([["low", "middle", "high"]], [tf.shape(x)[0], 1])}

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def total(self, x):
        return {"outputs": tf.reduce_sum(x, axis=1, keepdims=True)}

class Echo(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.string, name="x")])
    def echo(self, x):
        return {"y": tf.identity(x)}

model = Estimator()
signatures = {"serving_default": model.total, "classify": model.scores, "regress": model.total}
tf.saved_model.save(model, sys.argv[1] + "/estimator", signatures=signatures)
tf.saved_model.save(Echo(), sys.argv[1] + "/echo-bytes", signatures={"serving_default": Echo().echo})
"""


def build(folder: Path) -> dict[str, Path]:
    """Model -> what to push."""
    made = {f"echo-{name.lower()}": _echo(folder, name) for name in DATATYPES}
    made |= {"pair": _pair(folder), "counter": _counter(folder), "pixels": _pixels(folder)}
    # One for each place: their clients run beside each other, and a busy model refuses what it cannot do in time.
    made |= dict.fromkeys(("slow-gateway", "slow-worker"), _slow(folder))
    made["spare"] = made["echo-fp32"]
    made |= {name: folder / name for name in ("estimator", "echo-bytes")}
    command = [sys.executable, "-c", _SAVED_MODELS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return made


def _save(file: Path, graph: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


def _graph(nodes: list[object], inputs: dict[str, tuple], outputs: dict[str, tuple], constants: tuple = ()) -> object:
    sides = [[helper.make_tensor_value_info(name, *spec) for name, spec in side.items()] for side in (inputs, outputs)]
    return helper.make_graph(nodes, "model", *sides, list(constants))


def _echo(folder: Path, datatype: str) -> Path:
    """y is x."""
    spec = (DATATYPES[datatype], ["rows", "columns"])
    return _save(
        folder / f"echo-{datatype}.onnx", _graph([helper.make_node("Identity", ["x"], ["y"])], {"x": spec}, {"y": spec})
    )


def _pair(folder: Path) -> Path:
    """total is a + b, product a * b."""
    spec = (TensorProto.FLOAT, ["rows", 4])
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Mul", ["a", "b"], ["product"])]
    return _save(folder / "pair.onnx", _graph(nodes, {"a": spec, "b": spec}, {"total": spec, "product": spec}))


def _counter(folder: Path) -> Path:
    """sum is that of all x of a sequence so far."""
    spec = (TensorProto.FLOAT, ["rows", 1])
    nodes = [helper.make_node("Add", ["x", "before"], ["sum"]), helper.make_node("Identity", ["sum"], ["after"])]
    graph = _graph(nodes, {"x": spec, "before": spec}, {"sum": spec, "after": spec})
    states = [{"inputName": "before", "outputName": "after"}]
    file = _save(folder / "counter" / "model.onnx", graph)
    (folder / "counter" / "sealane.json").write_text(json.dumps({"sequenceBatching": {"states": states}}))
    return file.parent


def _pixels(folder: Path) -> Path:
    """mean of each image of 600,000 bytes."""
    image, mean = (TensorProto.UINT8, ["rows", 200, 1000, 3]), (TensorProto.FLOAT, ["rows"])
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real"], ["mean"], axes=[1, 2, 3], keepdims=0),
    ]
    return _save(folder / "pixels.onnx", _graph(nodes, {"image": image}, {"mean": mean}))


def _slow(folder: Path) -> Path:
    """y is x, after as many products of matrices as make it slow here."""
    import numpy as np
    import onnxruntime

    probe = onnxruntime.InferenceSession(str(_slow_model(folder, _PROBE_TURNS)))
    laps = []
    for _ in range(5):
        begun = time.perf_counter()
        probe.run(None, {"x": np.ones((1, 1), np.float32)})
        laps.append(time.perf_counter() - begun)
    return _slow_model(folder, max(_PROBE_TURNS, int(_SLOW_SECONDS / min(laps) * _PROBE_TURNS)))


def _slow_model(folder: Path, turns: int) -> Path:
    import numpy as np

    square, flag = (TensorProto.FLOAT, [96, 96]), (TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("MatMul", ["m", "unit"], ["n"]), helper.make_node("Identity", ["go"], ["on"])],
        "turn",
        [helper.make_tensor_value_info(*item) for item in (("turn", TensorProto.INT64, []), ("go", *flag))]
        + [helper.make_tensor_value_info("m", *square)],
        [helper.make_tensor_value_info("on", *flag), helper.make_tensor_value_info("n", *square)],
    )
    constants = (
        numpy_helper.from_array(np.eye(96, dtype=np.float32), "unit"),
        numpy_helper.from_array(np.array(turns, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array([0, 0], np.int64), "corner"),
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["high"], keepdims=0),
        helper.make_node("Mul", ["unit", "high"], ["first"]),
        helper.make_node("Loop", ["turns", "yes", "first"], ["last"], body=body),
        helper.make_node("GatherND", ["last", "corner"], ["kept"]),
        helper.make_node("Sub", ["kept", "high"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    spec = (TensorProto.FLOAT, ["rows", 1])
    return _save(folder / "slow.onnx", _graph(nodes, {"x": spec}, {"y": spec}, constants))
