"""PROTO-7: two gateways, one of them killed under load; clients that know both lose no call that may run again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from bench import lane_site

from sealane.client import Client, StaticToken
from sealane.errors import SealaneError, Unavailable

CALLERS = 8
X = np.arange(8, dtype=np.float32).reshape(2, 4)
#: What a client of any make can be configured with: gRPC's own retries and its own balancing.
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)


@dataclass
class Gateways:
    """Two gateways and a worker with a lane to each."""

    site: lane_site.Site
    ports: list[int]

    @property
    def trust(self) -> bytes:
        return (self.site.folder / "ca.pem").read_bytes()

    @property
    def addresses(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def kill(self, number: int) -> None:
        process = self.site.processes[f"gateway-{number}"]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def gateways(tmp_path: Path) -> Iterator[Gateways]:
    with lane_site.site(tmp_path, "w") as site:
        folder = str(tmp_path)
        told = [site.start(f"gateway-{number}", "bench.lane_site", "gateway", folder, "w") for number in range(2)]
        meshes = [f"127.0.0.1:{ports['mesh']}" for ports in told]
        site.start("worker", "bench.lane_site", "doubling", folder, "w", *meshes)
        made = Gateways(site, [ports["client"] for ports in told])
        for port in made.ports:
            answers(made, f"127.0.0.1:{port}")
        yield made


def answers(gateways: Gateways, address: str) -> None:
    """Wait until a gateway has its lane."""
    end = time.monotonic() + 20
    with sdk(gateways, address) as client:
        while True:
            try:
                client.inference.predict("d", {"x": X})
                return
            except Unavailable:
                assert time.monotonic() < end
                time.sleep(0.05)


def sdk(gateways: Gateways, addresses: str) -> Client:
    return Client({"inference": addresses}, trust_bundle=gateways.trust, credentials=StaticToken(lane_site.token()))


@dataclass
class Load:
    """Callers that call until they are told to stop."""

    answered: int = 0
    failures: tuple[str, ...] = ()

    def run(self, call: Callable[[], np.ndarray], kill: Callable[[], None]) -> None:
        lock, stop = threading.Lock(), threading.Event()

        def caller() -> None:
            while not stop.is_set():
                try:
                    np.testing.assert_array_equal(call(), X * 2)
                except (SealaneError, grpc.RpcError) as error:
                    with lock:
                        self.failures += (repr(error),)
                else:
                    with lock:
                        self.answered += 1

        with ThreadPoolExecutor(CALLERS) as pool:
            running = [pool.submit(caller) for _ in range(CALLERS)]
            try:
                self._until(200)
                kill()
                self._until(self.answered + 200)
            finally:
                stop.set()
            for future in running:
                future.result()

    def _until(self, count: int) -> None:
        end = time.monotonic() + 60
        while self.answered < count and not self.failures:
            assert time.monotonic() < end, f"{self.answered} answers, too few"
            time.sleep(0.01)


@pytest.mark.parametrize("killed", [0, 1])
def test_the_sdk_goes_on_at_the_other_gateway(gateways: Gateways, killed: int) -> None:
    load = Load()
    clients = [sdk(gateways, gateways.addresses) for _ in range(CALLERS)]
    mine = threading.local()

    def call() -> np.ndarray:
        if not hasattr(mine, "client"):
            mine.client = clients.pop()
        return mine.client.inference.predict("d", {"x": X}, timeout=30)["y"]

    load.run(call, lambda: gateways.kill(killed))
    assert load.failures == ()


@pytest.mark.tensorflow
def test_a_stock_client_that_retries_goes_on_at_the_other_gateway(gateways: Gateways) -> None:
    pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed here")
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "d"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(X))
    options = [("grpc.service_config", SERVICE_CONFIG), ("grpc.ssl_target_name_override", lane_site.GATEWAY_NAME)]
    metadata = (("authorization", f"Bearer {lane_site.token()}"),)
    with grpc.secure_channel(
        f"ipv4:{gateways.addresses}", grpc.ssl_channel_credentials(gateways.trust), options
    ) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def call() -> np.ndarray:
            answer = stub.Predict(request, timeout=30, metadata=metadata)
            return np.asarray(tf.make_ndarray(answer.outputs["y"]))

        load = Load()
        load.run(call, lambda: gateways.kill(0))
    assert load.failures == ()
