"""Two gateways that know nothing of each other: what workers say of their load lets one see the other's calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from gateway_harness import OIP, TLS_NAME, Authority, Gateway, wait_for
from test_gateway import infer_body, route

from sealane.rpc.affinity import AFFINITY
from sealane.rpc.call import Call
from sealane.rpc.channel import Target, connect
from sealane_inference.routing import Endpoint
from sealane_worker.lane_session import LaneWork
from sealane_worker.lanes import Lanes
from sealane_worker.link_meter import LinkMeter
from sealane_worker.spec import Ran
from sealane_worker.statistics import StatisticsRecorder

HELD = np.full((2, 4), 7.0, np.float32)
RUN_SECONDS = 0.01
INFER = OIP + "ModelInfer"


class Model:
    """What a worker runs, with its own books: holds the requests that ask for it, answers others at once."""

    def __init__(self) -> None:
        self.recorder = StatisticsRecorder()
        self.go_on = threading.Event()
        self.ran = 0
        self.meter = LinkMeter()
        self.answer = b""

    def route(self, path: str) -> SimpleNamespace:
        return SimpleNamespace(method=None)

    def unary(self, route: object, call: Call) -> bytes:
        begun = self.recorder.begun()
        self.ran += 1
        if HELD.tobytes() in (call.body or b""):
            assert self.go_on.wait(20)
        # As if it ran one request at a time: each waits 10 ms for everyone before it.
        begun = begun._replace(at=begun.at - RUN_SECONDS * (begun.before + 1))
        self.recorder.succeeded(begun, Ran({}, RUN_SECONDS, 0.0, 1), 1)
        call.load = self.recorder.load()
        return self.answer

    def model(self, deployment: str) -> SimpleNamespace:
        return SimpleNamespace(assignment=SimpleNamespace(epoch=1))


@pytest.fixture
def gateways(tmp_path: Path, authority: Authority) -> Iterator[list[Gateway]]:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Gateway(tmp_path / name, authority))
    yield made
    for gateway in made:
        gateway.stop()


@pytest.fixture
def workers(tmp_path: Path, authority: Authority, gateways: list[Gateway]) -> Iterator[dict[str, Model]]:
    """Two workers with the suite's own lanes to both gateways."""
    models = {node: Model() for node in ("w1", "w2")}
    with ThreadPoolExecutor(64) as pool:
        lanes = []
        for node, model in models.items():
            identity = authority.identity(tmp_path / node, f"spiffe://sealane/node/{node}", f"{node}.node.sealane")
            target = (identity.trust_bundle, TLS_NAME, identity.private_key, identity.certificate_chain)

            def dial(address: str, target: tuple[bytes, str, bytes, bytes] = target) -> grpc.Channel:
                return connect(Target(address, *target))

            kept = Lanes(LaneWork(model, model, pool, 48, model.meter), dial)  # type: ignore[arg-type]
            kept.keep([gateway.mesh for gateway in gateways])
            lanes.append(kept)
        for gateway in gateways:
            wait_for(lambda gateway=gateway: all(gateway.present.lane(node) for node in models))  # type: ignore[misc]
            gateway.routes(route(*(Endpoint(node, 1) for node in models)))
        yield models
        for model in models.values():
            model.go_on.set()
        for kept in lanes:
            kept.stop()


@pytest.fixture
def call() -> Callable[..., None]:
    def send(gateway: Gateway, **metadata: str) -> None:
        gateway.call(INFER, infer_body(), **metadata)

    return send


def test_calls_of_one_gateway_are_seen_by_the_choice_of_the_other(
    gateways: list[Gateway], workers: dict[str, Model], call: Callable[..., None]
) -> None:
    one, two = gateways
    one.routes(route(Endpoint("w1", 1)))
    with ThreadPoolExecutor(8) as callers:
        held = [callers.submit(one.call, INFER, infer_body(x=HELD)) for _ in range(8)]
        wait_for(lambda: workers["w1"].ran == 8)
        for _ in range(2):
            call(two)
        assert (workers["w1"].ran, workers["w2"].ran) == (9, 1), "each was asked once, to find out"
        for _ in range(20):
            call(two)
        assert (workers["w1"].ran, workers["w2"].ran) == (9, 21)
        workers["w1"].go_on.set()
        for item in held:
            item.result(10)


def test_both_gateways_keep_a_key_at_the_same_worker(
    gateways: list[Gateway], workers: dict[str, Model], call: Callable[..., None]
) -> None:
    kept = set()
    for key in range(12):
        before = {node: model.ran for node, model in workers.items()}
        for gateway in gateways * 2:
            call(gateway, **{AFFINITY: f"session-{key}"})
        grown = {node: model.ran - before[node] for node, model in workers.items()}
        assert sorted(grown.values()) == [0, 4]
        kept.add(max(grown, key=lambda node: grown[node]))
    assert kept == set(workers)


def test_large_payloads_on_a_lane_measure_the_link(
    gateways: list[Gateway], workers: dict[str, Model], call: Callable[..., None]
) -> None:
    model = workers["w1"]
    gateways[0].routes(route(Endpoint("w1", 1)))
    for _ in range(4):
        call(gateways[0])
    assert model.meter.speeds == (0.0, 0.0), "small calls say nothing"
    gateways[0].call(INFER, infer_body(x=np.zeros((1 << 18, 4), np.float32)))
    down, up = model.meter.speeds
    assert down > 1e5 and up == 0.0
    model.answer = bytes(3 << 20)
    gateways[0].call(INFER, infer_body())
    wait_for(lambda: model.meter.speeds[1] > 1e5)
    assert workers["w2"].meter.speeds == (0.0, 0.0)
