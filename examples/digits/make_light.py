"""Makes the files under ``light/``: the example's models for machines without TensorFlow (``LIGHT=1``).

Run once where TensorFlow is installed; the results are committed. Same training and same conversion as the demo.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from train import train

from sealane_worker.optimise import OptimiseRun, OptimiseSpec

LIGHT = Path(__file__).parent / "light"


def main() -> None:
    """Train, optimise, keep the LiteRT files with the test rows and what was measured."""
    LIGHT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        trained = train(work, epochs=20)
        spec = OptimiseSpec(
            saved_model=str(work / "saved_model"),
            calibration=str(work / "calibration.npz"),
            test=str(work / "test.npz"),
            out=str(work / "out"),
        )
        variants = OptimiseRun(spec).result(lambda fraction, message: print(f"{fraction:4.0%} {message}"))
        for name in ("litert-float.tflite", "litert-int8.tflite"):
            shutil.copyfile(work / "out" / name, LIGHT / name)
        shutil.copyfile(work / "test.npz", LIGHT / "test.npz")
    measured = {
        variant.name: {
            "bytes": variant.size_bytes,
            "accuracy": variant.accuracy,
            "p50_us": variant.p50_us,
            "p99_us": variant.p99_us,
            "utilisation": variant.utilisation,
        }
        for variant in variants
    }
    metrics = {"parameters": trained["parameters"], "variants": measured}
    (LIGHT / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
