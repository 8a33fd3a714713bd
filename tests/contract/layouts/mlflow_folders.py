"""Runs in MLflow's own environment: writes model folders of every flavor that matters.

``python mlflow_folders.py FOLDER ONNX_FILE SITE_PACKAGES [torch]`` writes below FOLDER. TensorFlow, or PyTorch where
the last word is given, comes from the other environment whose packages are named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import Schema, TensorSpec

folder, onnx_file = Path(sys.argv[1]), sys.argv[2]
ROWS = np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 64)
NONE = {"pip_requirements": []}


def save_onnx():
    import mlflow.onnx

    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, 64), "pixels")]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, 10), "probabilities")]),
    )
    frame = pd.DataFrame(ROWS)
    kinds = {
        "onnx": {"signature": signature, "input_example": {"pixels": ROWS}},
        "onnx-frame": {"signature": infer_signature(frame), "input_example": frame, "save_as_external_data": False},
        "onnx-odd": {"input_example": {"other": ROWS}},
    }
    for name, options in kinds.items():
        # Anew: saving takes the weights out of the object.
        mlflow.onnx.save_model(onnx.load(onnx_file), folder / name, **options, **NONE)


def log_onnx():
    import mlflow.onnx

    mlflow.set_tracking_uri((folder / "mlruns").as_uri())
    with mlflow.start_run() as run:
        info = mlflow.onnx.log_model(onnx.load(onnx_file), name="digits", **NONE)
        mlflow.log_metric("accuracy", 0.5, step=0, model_id=info.model_id)
        mlflow.log_metric("accuracy", 0.9375, step=1, model_id=info.model_id)
    tags = mlflow.get_logged_model(info.model_id).tags
    told = {"run": run.info.run_id, "model": info.model_id, "commit": tags.get("mlflow.source.git.commit", "")}
    (folder / "logged.json").write_text(json.dumps(told))


def save_tensorflow():
    import keras
    import mlflow.tensorflow
    import tensorflow as tf

    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((64,), name="pixels"), keras.layers.Dense(10)])
    mlflow.tensorflow.save_model(model, folder / "keras", input_example=ROWS, **NONE)

    class Twice(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 64), tf.float32, name="pixels")])
        def __call__(self, pixels):
            return pixels * 2

    mlflow.tensorflow.save_model(Twice(), folder / "module", input_example=ROWS, **NONE)
    mlflow.tensorflow.save_model(model, folder / "keras-custom", custom_objects={"mine": lambda value: value}, **NONE)


def save_sklearn():
    import mlflow.sklearn
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(ROWS, [0, 1])
    mlflow.sklearn.save_model(model, folder / "sklearn", serialization_format="cloudpickle", **NONE)


def save_torch():
    import mlflow.pytorch
    import torch

    model = torch.nn.Linear(64, 10)
    signature = ModelSignature(Schema([TensorSpec(np.dtype(np.float32), (-1, 64))]))
    mlflow.pytorch.save_model(
        model, folder / "torch", serialization_format="pt2", input_example=ROWS, signature=signature, **NONE
    )
    mlflow.pytorch.save_model(model, folder / "torch-pickle", serialization_format="pickle", **NONE)
    with torch.no_grad():
        np.savez(folder / "torch.npz", x=ROWS, y=model(torch.tensor(ROWS)).numpy())


def main():
    sys.path.append(sys.argv[3])
    if sys.argv[4:] == ["torch"]:
        save_torch()
        return
    save_onnx()
    log_onnx()
    save_tensorflow()
    save_sklearn()


if __name__ == "__main__":
    main()
