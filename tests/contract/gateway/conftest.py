"""Fixtures: a real gateway, and workers with a lane to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_harness import Authority, Gateway, LaneWorker, Reply


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def gateway(tmp_path: Path, authority: Authority) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path, authority)
    yield gateway
    gateway.stop()


@pytest.fixture
def start_worker(gateway: Gateway) -> Iterator[Callable[..., LaneWorker]]:
    """Starts workers with a lane to the gateway; their lanes are closed at the end."""
    workers: list[LaneWorker] = []

    def start(node: str, answer: Reply | None = None) -> LaneWorker:
        workers.append(LaneWorker(gateway, node, answer))
        return workers[-1]

    yield start
    for worker in workers:
        if gateway.present.lane(worker.node) is not None:
            worker.die()
