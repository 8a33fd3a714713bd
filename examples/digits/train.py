"""Trains a small convolutional network on scikit-learn's digits and exports it for Sealane.

Writes into the folder named by ``--out``:

* ``saved_model/``    the network, signature ``serving_default``: ``image`` FP32 [-1,8,8,1] -> ``probabilities`` [-1,10]
* ``calibration.npz`` arrays ``x`` and ``y``: training rows with which the optimise job calibrates int8
* ``test.npz``        arrays ``x`` and ``y``: the 360 rows that neither training nor calibration has seen
* ``metrics.json``    parameters, accuracy on the test rows, seconds of training

It is an ordinary training script: nothing in it knows Sealane.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

TEST_ROWS = 360
CALIBRATION_ROWS = 200
SEED = 7


@dataclass(frozen=True, slots=True)
class Digits:
    """Images as float32 (rows, 8, 8, 1) in 0..1 and their digits as int64 (rows,)."""

    train_x: npt.NDArray[np.float32]
    train_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[np.float32]
    test_y: npt.NDArray[np.int64]


def load_digits() -> Digits:
    """The 1797 digits that scikit-learn carries, shuffled with a fixed seed and split 1437/360."""
    from sklearn.datasets import load_digits as bundled

    data = bundled()
    order = np.random.default_rng(SEED).permutation(len(data.images))
    images = (data.images[order].astype(np.float32) / 16.0)[..., np.newaxis]
    digits = data.target[order].astype(np.int64)
    return Digits(images[:-TEST_ROWS], digits[:-TEST_ROWS], images[-TEST_ROWS:], digits[-TEST_ROWS:])


def train(out: Path, epochs: int) -> dict[str, float]:
    """Train, export and write the data files; returns what ``metrics.json`` holds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import keras
    import tensorflow as tf

    started = time.monotonic()
    keras.utils.set_random_seed(SEED)
    digits = load_digits()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax", name="probabilities"),
        ]
    )
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(digits.train_x, digits.train_y, batch_size=64, epochs=epochs, verbose=0)
    _, accuracy = model.evaluate(digits.test_x, digits.test_y, verbose=0)

    # `model.export` alone would call the output `output_0`; an endpoint of one's own gives it its name.
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        lambda image: {"probabilities": model(image, training=False)},
        input_signature=[tf.TensorSpec((None, 8, 8, 1), tf.float32, name="image")],
    )
    archive.write_out(str(out / "saved_model"), verbose=False)
    np.savez_compressed(out / "test.npz", x=digits.test_x, y=digits.test_y)
    np.savez_compressed(
        out / "calibration.npz", x=digits.train_x[:CALIBRATION_ROWS], y=digits.train_y[:CALIBRATION_ROWS]
    )
    return {
        "parameters": float(model.count_params()),
        "accuracy": float(accuracy),
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    """Command line: ``train.py --out DIR [--epochs N]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the data files")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the 1437 training rows")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    metrics = train(arguments.out, arguments.epochs)
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
