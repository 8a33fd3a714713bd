"""BentoML: one service, an endpoint a model. Tensors travel as raw bytes in the body."""

from __future__ import annotations

import os

import bentoml
import numpy as np
from running import DTYPES, described, load

FOLDER = os.environ["BENCH_MODELS"]
SPECS = described(FOLDER)


def endpoint(name: str):
    """An API that takes and gives the raw bytes of a tensor."""

    def predict(self, data: bytes, /) -> bytes:
        """One run."""
        array = np.frombuffer(data, DTYPES[SPECS[name]["datatype"]]).reshape(SPECS[name]["shape"])
        return self.models[name](array).tobytes()

    predict.__name__ = name.replace("-", "_")
    return bentoml.api(predict, route=f"/{name}")


class Bench:
    """Every model."""

    def __init__(self) -> None:
        self.models = {name: load(FOLDER, name) for name in SPECS}


for each in SPECS:
    setattr(Bench, each.replace("-", "_"), endpoint(each))

Service = bentoml.service(workers=int(os.environ["BENCH_WORKERS"]), metrics={"enabled": False})(Bench)
