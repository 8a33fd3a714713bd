"""Runs in PyTorch's own environment, as a training process does: trains on the digits and pushes the module itself.

``python torch_push.py DIGITS.npz DATA FOLDER`` pushes to the suite on DATA and leaves ``answers.npz`` and
``refusals.json`` in FOLDER. The network is that of ``tests/contract/runtimes/torch_models.py``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch_models import Classifier, trained

from sealane.client import connect
from sealane.errors import SealaneError


class Unsteady(torch.nn.Module):
    """Answers something else once it is exported: the export keeps one path of the two."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, pixels):
        self.calls += 1
        return pixels * self.calls


class Added(torch.nn.Module):
    """Two inputs, a tuple of outputs, one of them whole numbers."""

    def forward(self, left, right, scale=2):
        return left + right * scale, right.argmax(-1)


class Branching(torch.nn.Module):
    """Depends on its values, which no exporter follows."""

    def forward(self, pixels):
        return pixels if pixels.sum() > 0 else -pixels


@contextlib.contextmanager
def without_onnxscript():
    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == "onnxscript" else real(name, *more)
    try:
        yield
    finally:
        importlib.util.find_spec = real


def main():
    digits, data, folder = np.load(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    model = Classifier(trained(digits)).train()
    rows = digits["tx"]
    with connect(data) as client:
        client.models.push(model, "torch-module", example=torch.tensor(rows[:1]))
        assert model.training, "left as it was"
        client.models.push(Added(), "torch-two", example=(rows[:3].astype(np.float64), rows[:3]))
        with without_onnxscript(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            client.models.push(model, "torch-older", example=rows[:1])
        assert any("onnxscript is not installed" in str(item.message) for item in told)
        refusals = {}
        tried = {"unsteady": (Unsteady(), rows[:3]), "none": (Added(), None), "branching": (Branching(), rows[:3])}
        for name, (module, example) in tried.items():
            try:
                client.models.push(module, f"torch-{name}", example=example)
            except SealaneError as error:
                refusals[name] = [error.kind, error.reason, error.message]
    (folder / "refusals.json").write_text(json.dumps(refusals))
    with torch.no_grad():
        answers = model.eval()(torch.tensor(rows))
    np.savez(folder / "answers.npz", **{name: tensor.numpy() for name, tensor in answers.items()})


if __name__ == "__main__":
    main()
