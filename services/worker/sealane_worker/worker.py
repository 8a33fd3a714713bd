"""A running worker: its parts, in the order in which they start and end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from sealane.rpc.health import Health
from sealane.rpc.quota import QuotaLimits
from sealane.rpc.quota_shares import SharedQuotas
from sealane.scheduler.v1 import fleet_service_pb2
from sealane.security.keys import KeySet
from sealane_worker.agent import Agent
from sealane_worker.assignments import Assignments
from sealane_worker.cache import Cache
from sealane_worker.engine import Engine
from sealane_worker.introduction import Introduction
from sealane_worker.lanes import Lanes
from sealane_worker.metrics import MetricsListener
from sealane_worker.native_server import NativeServer
from sealane_worker.parking import Parking
from sealane_worker.runner import Runner
from sealane_worker.sealing import SealingKey

DRAIN_SECONDS = 5.0
#: How long a start waits for the models that the disk remembers.
LOAD_SECONDS = 3.0
KEYS_SECONDS = 240.0
FIRST_KEYS_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker is made of; wired by :mod:`sealane_worker.app`."""

    engine: Engine
    server: grpc.Server | NativeServer
    health: Health
    pool: ThreadPoolExecutor
    introduction: Introduction
    sealing: SealingKey
    keys: KeySet
    quotas: QuotaLimits
    shares: SharedQuotas
    lanes: Lanes
    assignments: Assignments
    runner: Runner
    cache: Cache
    parking: Parking | None = None
    metrics: MetricsListener | None = None


class Worker:
    """Starts and ends the parts."""

    def __init__(self, parts: Parts, agent: Agent) -> None:
        self._parts = parts
        self._agent = agent
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to serve and to dial; the server has its port already."""
        parts = self._parts
        threading.Thread(target=self._keep_keys, name="keys", daemon=True).start()
        # What the disk remembers is served before any control plane answers.
        parts.assignments.start()
        parts.shares.start(parts.quotas.take_demand)
        parts.server.start()
        parts.sealing.start()
        # A model that is up again when the worker registers is kept where it is instead of prepared anew.
        parts.assignments.wait(LOAD_SECONDS)
        self._agent.start()
        parts.health.set(True)
        if parts.parking is not None:
            parts.parking.start()
        if parts.metrics is not None:
            parts.metrics.start()

    def stop(self) -> None:
        """Drain: no new work, let calls finish, close the streams, end the models."""
        parts = self._parts
        parts.health.set(False)
        self._stop.set()
        self._agent.stop()
        stopped = parts.server.stop(DRAIN_SECONDS)
        until = time.monotonic() + DRAIN_SECONDS
        while parts.introduction.limits.in_flight and time.monotonic() < until:
            time.sleep(0.02)
        parts.shares.stop()
        parts.lanes.stop()
        parts.runner.stop()
        parts.assignments.stop()
        parts.sealing.stop()
        stopped.wait(DRAIN_SECONDS)
        parts.pool.shutdown(wait=False, cancel_futures=True)
        if parts.metrics is not None:
            parts.metrics.stop()
        if parts.parking is not None:
            parts.parking.stop()
        parts.engine.close()
        parts.cache.close()

    def _keep_keys(self) -> None:
        """Have auth's keys on disk before anybody calls, so that a cut later finds them there."""
        while not self._stop.is_set():
            self._parts.keys.refresh()
            known = (self._parts.introduction.data_dir / "jwks.json").exists()
            self._stop.wait(KEYS_SECONDS if known else FIRST_KEYS_SECONDS)


def take_desired(parts: Parts, desired: fleet_service_pb2.DesiredState) -> None:
    """Pass a desired state to those who bring it about; returns at once."""
    parts.assignments.apply(desired.assignments, desired.ensembles)
    parts.lanes.keep(desired.gateways)
    parts.runner.apply(desired.tasks)
