"""pytriton: ``pytriton_server.py FOLDER GRPC_PORT HTTP_PORT METRICS_PORT INSTANCES``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from running import DTYPES, described, load


def function(folder: str, name: str):
    """One instance's inference function."""
    model = load(folder, name)

    def infer(requests):
        return [{"y": model(request["x"])} for request in requests]

    return infer


def main() -> None:
    """Serve until told to stop."""
    folder, grpc_port, http_port, metrics_port, instances = sys.argv[1], *map(int, sys.argv[2:])
    config = TritonConfig(
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        grpc_address="127.0.0.1",
        http_address="127.0.0.1",
    )
    with Triton(config=config, workspace=Path.cwd() / "workspace") as triton:
        for name, model in described(folder).items():
            triton.bind(
                model_name=name,
                infer_func=[function(folder, name) for _ in range(instances)],
                inputs=[Tensor(name="x", dtype=DTYPES[model["datatype"]], shape=tuple(model["shape"]))],
                outputs=[Tensor(name="y", dtype=np.float32, shape=tuple(model["output_shape"]))],
                config=ModelConfig(batching=False),
            )
        triton.serve()


if __name__ == "__main__":
    main()
