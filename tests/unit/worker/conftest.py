"""The example's light model, limits that let crashes be tested in tenths of a second, in-process peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from worker_parts import DEPLOYMENT, DIGEST, Front, KnownCaller, Local

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.rpc import middleware
from sealane.rpc.dispatch import Dispatcher
from sealane.rpc.health import Health
from sealane.security import suites
from sealane.security.opener import Opener
from sealane.tensors import Array
from sealane_worker.app import services
from sealane_worker.box import BoxLimits
from sealane_worker.deployment import Assignment
from sealane_worker.engine import Engine
from sealane_worker.introduction import Introduction
from sealane_worker.sealed import RAW, SealedServicer
from sealane_worker.sealing import SealingKey
from sealane_worker.serving import Serving
from sealane_worker.spec import ModelSpec
from sealane_worker.streams import Streams

LIGHT = Path(__file__).parents[3] / "examples/digits/light"


@pytest.fixture
def int8_spec() -> ModelSpec:
    """The int8 digits model."""
    return ModelSpec("litert", LIGHT / "litert-int8.tflite")


@pytest.fixture
def quick() -> BoxLimits:
    """Limits for tests."""
    return BoxLimits(load=20, hang=0.3, backoff_first=0.02, crash_window=60)


@pytest.fixture(scope="session")
def digits() -> tuple[Array, Array]:
    """Test images (360, 8, 8, 1) and their digits."""
    with np.load(LIGHT / "test.npz") as archive:
        return archive["x"], archive["y"]


@pytest.fixture
def local() -> Iterator[Local]:
    """In-process servers that end with the test."""
    made = Local()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def shared_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One engine for all tests of the front: starting a model process takes a quarter of a second."""
    engine, telemetry_, clock = Engine(), telemetry.disabled(), SystemClock()
    spec = ModelSpec("litert", LIGHT / "litert-int8.tflite")
    engine.load(Assignment(DEPLOYMENT, "projects/p/models/digits", 3, "litert-int8", DIGEST, 5, spec))
    pair = suites.generate(suites.X25519)
    chain: list[middleware.Middleware] = [middleware.Limits(48), KnownCaller(), middleware.Parse(RAW)]
    sealing = SealingKey(pair, lambda: grpc.insecure_channel("127.0.0.1:1"), clock)
    folder = tmp_path_factory.mktemp("worker")
    about = Introduction("edge-1", folder, {}, 0.0, (), sealing, middleware.Limits(1), "127.0.0.1:7")
    serving, health = Serving(engine, telemetry_, "edge-1"), Health()
    sealed = SealedServicer(serving, Opener(pair, clock), about, telemetry_)
    streams = Streams(8)
    dispatcher = Dispatcher(services(serving, sealed, health, streams), middleware.Chain(chain))
    streams.attach(dispatcher)
    yield Front(engine, dispatcher, pair)
    engine.close()


@pytest.fixture
def front(shared_front: Front) -> Iterator[Front]:
    """See :class:`worker_parts.Front`; as it was before, afterwards."""
    yield shared_front
    shared_front.engine.expect({})
    for model in shared_front.engine.models():
        if model.assignment.deployment != DEPLOYMENT:
            shared_front.engine.unload(model.assignment.deployment)
