"""Runs in PyTorch's own environment: trains Dense 64-32-10, exports it and answers rows with it.

``python torch_program.py DIGITS.npz FOLDER`` leaves ``digits.pt2`` and ``answers.npz`` in FOLDER. The network is
that of ``tests/contract/runtimes/torch_models.py``, which has to be importable.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch_models import Classifier, trained


def main():
    digits, folder = np.load(sys.argv[1]), Path(sys.argv[2])
    model = Classifier(trained(digits))
    free = {"pixels": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(model, (torch.zeros(2, 64),), dynamic_shapes=free), folder / "digits.pt2")
    with torch.no_grad():
        answers = model(torch.tensor(digits["tx"]))
    np.savez(folder / "answers.npz", **{name: tensor.numpy() for name, tensor in answers.items()})


if __name__ == "__main__":
    main()
