"""Runs in PyTorch's own environment: trains and exports models, then runs them with our runtime in the same process.

``python torch_models.py DIGITS.npz FOLDER`` prints a line of JSON: what each check found.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import torch

from sealane.errors import SealaneError
from sealane.tensors import NUMPY_OF
from sealane_worker.runtimes import RuntimeOptions
from sealane_worker.runtimes.torch import RUNTIME, TorchRuntime


def trained(digits):
    """Dense 64-32-10 on the digits."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimiser = torch.optim.Adam(model.parameters(), 0.003)
    rows, labels = torch.tensor(digits["x"]), torch.tensor(digits["y"])
    for _ in range(20):
        for start in range(0, len(rows), 32):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(rows[start : start + 32]), labels[start : start + 32]).backward()
            optimiser.step()
    return model.eval()


class Classifier(torch.nn.Module):
    """Names an input and two outputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        scores = self.model(pixels)
        return {"probabilities": torch.softmax(scores, -1), "scores": scores}


class Mixed(torch.nn.Module):
    """Nested and fixed arguments, bfloat16, an input given back."""

    def forward(self, both, factor, flag=None):
        a, b = both
        return a * factor, b, (a.to(torch.float32) + b)


def told(signature):
    sides = {"inputs": signature.inputs, "outputs": signature.outputs}
    return {side: [[spec.name, spec.datatype, list(spec.shape)] for spec in specs] for side, specs in sides.items()}


def failure(act):
    try:
        act()
    except SealaneError as error:
        return [error.kind, error.reason, error.message]
    return None


def export_check(model, digits, folder):
    batch = torch.export.Dim("batch")
    program = torch.export.export(Classifier(model), (torch.zeros(2, 64),), dynamic_shapes={"pixels": {0: batch}})
    torch.export.save(program, folder / "digits.pt2")
    runtime = TorchRuntime()
    (signature,) = runtime.load(folder / "digits.pt2", RuntimeOptions(threads=1, instances=2))
    rows = digits["tx"]
    with torch.no_grad():
        wanted = torch.softmax(model(torch.tensor(rows)), -1).numpy()
    wrong = []

    def ask(place):
        for _ in range(20):
            answer = runtime.run({"pixels": rows[place : place + 5]}, signature.name)["probabilities"]
            if not np.allclose(answer, wanted[place : place + 5], atol=1e-5):
                wrong.append(place)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(0, 40, 10)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    answer = runtime.run({"pixels": rows}, signature.name)["probabilities"]
    first = runtime.run({"pixels": rows[:1]}, signature.name)["probabilities"]
    kept = first.copy()
    runtime.run({"pixels": rows[1:2]}, signature.name)
    closed = TorchRuntime()
    return {
        "signature": told(signature),
        "difference": float(abs(answer - wanted).max()),
        "accuracy": float(np.mean(answer.argmax(1) == digits["ty"])),
        "wrong": wrong,
        "overwritten": not np.array_equal(first, kept),
        "refused": failure(lambda: runtime.run({"pixels": rows[:, :5]}, signature.name)),
        "device": failure(lambda: TorchRuntime().load(folder / "digits.pt2", RuntimeOptions(device="tpu"))),
        "closed": failure(lambda: closed.run({}, "serving_default")),
    }


def mixed_check(folder):
    given = ((torch.ones(2, dtype=torch.bfloat16), torch.ones(2)), 3.0)
    torch.export.save(torch.export.export(Mixed(), given, {"flag": None}), folder / "mixed.pt2")
    runtime = TorchRuntime()
    (signature,) = runtime.load(folder / "mixed.pt2", RuntimeOptions())
    names = [spec.name for spec in signature.inputs]
    bits = np.array([0x3F80, 0x4000], np.uint16).view(NUMPY_OF["BF16"])
    sent = np.array([5, 6], np.float32)
    answer = runtime.run(dict(zip(names, (bits, sent), strict=True)), signature.name)
    sent[:] = 0
    return {
        "signature": told(signature),
        "bits": answer["output_0"].view(np.uint16).tolist(),
        "back": answer["output_1"].tolist(),
        "sum": answer["output_2"].tolist(),
    }


def script_check(model, digits, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, torch.zeros(2, 64)), str(folder / "digits.pt"))
    runtime = TorchRuntime()
    without = failure(lambda: runtime.load(folder / "digits.pt", RuntimeOptions()))
    sides = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": ["-1", "64"]}]}
    sides["outputs"] = [{"name": "output_0", "datatype": "FP32", "shape": ["-1", "10"]}]
    (folder / "signatures.json").write_text(json.dumps({"signatures": [{"name": "serving_default", **sides}]}))
    (signature,) = runtime.load(folder / "digits.pt", RuntimeOptions())
    with torch.no_grad():
        wanted = model(torch.tensor(digits["tx"])).numpy()
    answer = runtime.run({"pixels": digits["tx"]}, signature.name)["output_0"]
    return {"without": without, "signature": told(signature), "difference": float(abs(answer - wanted).max())}


class Payload:
    """What an attacker would put into an archive."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def hostile_check(folder):
    """A program whose sample inputs are a pickle that acts."""
    import io
    import pickle
    import zipfile

    mark = str(folder / "acted")
    inner = io.BytesIO()
    torch.save({}, inner)
    buffer = io.BytesIO()
    with zipfile.ZipFile(inner) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            data = pickle.dumps(Payload(mark), protocol=2) if name.endswith("data.pkl") else source.read(name)
            target.writestr(name, data)
    with zipfile.ZipFile(folder / "digits.pt2") as source, zipfile.ZipFile(folder / "bad.pt2", "w") as target:
        for name in source.namelist():
            target.writestr(name, buffer.getvalue() if "sample_inputs" in name else source.read(name))
    found = failure(lambda: TorchRuntime().load(folder / "bad.pt2", RuntimeOptions()))
    return {"acted": Path(mark).exists(), "error": found}


def main():
    digits, folder = np.load(sys.argv[1]), Path(sys.argv[2])
    model = trained(digits)
    (folder / "cut.pt2").write_bytes(b"PK no program")
    (folder / "cut").mkdir()
    found = {
        "export": export_check(model, digits, folder),
        "mixed": mixed_check(folder),
        "script": script_check(model, digits, folder),
        "cut": failure(lambda: TorchRuntime().load(folder / "cut.pt2", RuntimeOptions())),
        "hostile": hostile_check(folder),
        "executable": sorted(RUNTIME.executable),
        "devices": RUNTIME.devices(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
