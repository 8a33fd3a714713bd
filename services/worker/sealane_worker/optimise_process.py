"""The optimise job's process: SavedModel -> LiteRT float and full int8, each measured on test data.

``python -m sealane_worker.optimise_process SPEC.json``; started by :mod:`sealane_worker.optimise`. It imports
TensorFlow, so it is never a part of a process that serves. Ending it at any time leaves nothing half done that
counts: ``RESULT.json`` is written last.

Prints one JSON object a line: ``{"fraction": 0.4, "message": "..."}`` while it works, and where it fails
``{"error": {"kind", "reason", "message"}}`` with exit status 1.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from sealane.errors import FailedPrecondition, InvalidArgument, SealaneError
from sealane.tensors import NUMPY_OF, Array, Signature
from sealane_worker.optimise import MeasuredVariant, OptimiseSpec
from sealane_worker.runtimes import Runtime, RuntimeOptions, create_runtime
from sealane_worker.spec import size_on_disk
from sealane_worker.statistics import percentile

logger = logging.getLogger(__name__)

SIGNATURE = "serving_default"
LATENCY_RUNS = 300
WARM_UP_RUNS = 20
MAX_CALIBRATION_ROWS = 500


@dataclass(frozen=True, slots=True)
class LabelledData:
    """Rows and their classes: `x` has the model's input shape with rows first, `y` is int (rows,)."""

    x: Array
    y: Array


def read_data(path: Path) -> LabelledData:
    """Read a ``.npz`` with arrays ``x`` and ``y``; nothing in it is unpickled.

    Raises:
        InvalidArgument: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = LabelledData(archive["x"], archive["y"])
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument(
            f"{path.name} is not an .npz file with arrays 'x' and 'y'; write it with numpy.savez",
            reason="DATA_UNREADABLE",
        ) from error
    if not len(data.x) or len(data.x) != len(data.y):
        raise InvalidArgument(f"{path.name} has {len(data.x)} rows and {len(data.y)} classes; they must be as many")
    return data


def convert_float(saved_model: Path) -> bytes:
    """The model as LiteRT with float32 weights."""
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[SIGNATURE])
    return cast(bytes, converter.convert())


def convert_int8(saved_model: Path, calibration: Array) -> bytes:
    """The model as LiteRT with int8 weights and activations, float32 inputs and outputs.

    Full static quantisation: dynamic-range int8 is slower than float on convolutions. Float at the edges costs
    microseconds and spares every caller the scale and the zero point.
    """

    def rows() -> Iterator[list[Array]]:
        for index in range(min(len(calibration), MAX_CALIBRATION_ROWS)):
            yield [calibration[index : index + 1]]

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[SIGNATURE])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = rows
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return cast(bytes, converter.convert())


def measure(name: str, runtime_name: str, path: Path, test: LabelledData) -> MeasuredVariant:
    """Accuracy over the test rows, latency and utilisation at batch 1, with the runtime that will serve it."""
    runtime = create_runtime(runtime_name)
    signature = next(item for item in runtime.load(path, RuntimeOptions(threads=1)) if item.name == SIGNATURE)
    accuracy = _accuracy(runtime, signature, test)
    seconds, utilisation = _latency(runtime, signature, test.x)
    runtime.close()
    return MeasuredVariant(
        name=name,
        runtime=runtime_name,
        path=str(path),
        size_bytes=size_on_disk(path),
        accuracy=accuracy,
        p50_us=percentile(seconds, 0.5) * 1e6,
        p99_us=percentile(seconds, 0.99) * 1e6,
        utilisation=utilisation,
    )


def _accuracy(runtime: Runtime, signature: Signature, test: LabelledData) -> float:
    output = signature.outputs[0].name
    answers = runtime.run(_inputs(signature, test.x), signature.name)[output]
    return float(np.mean(np.argmax(answers.reshape(len(test.x), -1), axis=1) == test.y))


def _latency(runtime: Runtime, signature: Signature, rows: Array) -> tuple[list[float], float]:
    """Ascending seconds a run, and processor seconds per second of wall time while running back to back."""
    single = [_inputs(signature, rows[index : index + 1]) for index in range(min(len(rows), 32))]
    for inputs in single[:WARM_UP_RUNS]:
        runtime.run(inputs, signature.name)
    seconds = []
    cpu, wall = time.process_time(), time.perf_counter()
    for index in range(LATENCY_RUNS):
        started = time.perf_counter()
        runtime.run(single[index % len(single)], signature.name)
        seconds.append(time.perf_counter() - started)
    utilisation = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return sorted(seconds), utilisation


def _inputs(signature: Signature, rows: Array) -> dict[str, Array]:
    spec = signature.inputs[0]
    arrays = {spec.name: rows.astype(NUMPY_OF[spec.datatype], copy=False)}
    signature.check_inputs(arrays)
    return arrays


def _converted(convert: Callable[[], bytes]) -> bytes:
    """What `convert` gives; its errors told as the model's."""
    try:
        return convert()
    except (ValueError, RuntimeError, OSError) as error:
        raise FailedPrecondition(
            f"the model cannot be converted to LiteRT: {str(error).splitlines()[0][:300]}; "
            "use operations that LiteRT has",
            reason="CONVERSION_FAILED",
        ) from error


def _tell(fraction: float, message: str) -> None:
    _write({"fraction": fraction, "message": message})


def _write(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def optimise(spec: OptimiseSpec) -> list[MeasuredVariant]:
    """Convert and measure; the files come into ``spec.out``.

    Raises:
        SealaneError: data or model that cannot be used.
    """
    _tell(0.05, "reading data")
    calibration, test = read_data(Path(spec.calibration)), read_data(Path(spec.test))
    saved_model, out = Path(spec.saved_model), Path(spec.out)
    out.mkdir(parents=True, exist_ok=True)
    _tell(0.1, "measuring the SavedModel")
    variants = [measure("savedmodel", "tensorflow", saved_model, test)]
    _tell(0.35, "converting to float LiteRT")
    float_file = out / "litert-float.tflite"
    float_file.write_bytes(_converted(lambda: convert_float(saved_model)))
    variants.append(measure("litert-float", "litert", float_file, test))
    _tell(0.6, "converting to int8 LiteRT")
    int8_file = out / "litert-int8.tflite"
    rows = calibration.x.astype(np.float32, copy=False)
    int8_file.write_bytes(_converted(lambda: convert_int8(saved_model, rows)))
    _tell(0.9, "measuring int8 LiteRT")
    variants.append(measure("litert-int8", "litert", int8_file, test))
    return variants


def main() -> int:
    """Command line: ``python -m sealane_worker.optimise_process SPEC.json``."""
    logging.basicConfig(level=logging.WARNING)
    spec = OptimiseSpec(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        variants = optimise(spec)
    except SealaneError as error:
        _write({"error": {"kind": error.kind, "reason": error.reason, "message": error.message}})
        return 1
    result = Path(spec.out) / "RESULT.json"
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps({"variants": [asdict(variant) for variant in variants]}, indent=2) + "\n")
    partial.rename(result)
    _tell(1.0, "done")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
