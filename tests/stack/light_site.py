"""A running suite with the light model deployed, and what tests need to talk to it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import grpc
import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from orphans import descendants, ended

from sealane.client import Client, ClientCredentials, connect
from sealane.errors import SealaneError
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.channel import Target, dial
from sealane.security.key_file import KeyFile
from sealane_local import plan
from sealane_local.stack import LocalStack

LIGHT = Path(__file__).parents[2] / "examples/digits/light"
MODEL = "digits"
CAMERA_A, CAMERA_B, ACCURATE = "camera-a", "camera-b", "accurate"
EDGE, CLOUD, SITE = "edge-1", "cloud-1", "site-a"
#: One worker has the front in Python, the other the native one where it is built: tests meet both.
FRONTS = {EDGE: {"SEALANE_WORKER_FRONT": "python"}}
SERVICES = ("auth", "registry", "scheduler", "inference")


@dataclass
class LightSite:
    """The suite, a client of it, and the rows of the test set."""

    stack: LocalStack
    client: Client

    @property
    def data(self) -> Path:
        return self.stack.options.data

    @cached_property
    def trust(self) -> bytes:
        return (self.data / "pki" / "ca.pem").read_bytes()

    @cached_property
    def endpoints(self) -> dict[str, str]:
        addresses: dict[str, str] = json.loads((self.data / "endpoints.json").read_text())
        return addresses

    @cached_property
    def rows(self) -> npt.NDArray[np.float32]:
        with np.load(LIGHT / "test.npz") as arrays:
            return arrays["x"].astype(np.float32)

    @cached_property
    def signing_key(self) -> Ed25519PrivateKey:
        """Auth's own key, out of its database and under its key file: for tokens that auth would never issue."""
        import sqlite3

        database = sqlite3.connect(f"file:{self.data / 'auth' / 'auth.db'}?mode=ro", uri=True)
        try:
            kid, sealed = database.execute(
                "select kid, sealed_private from signing_keys order by create_time desc"
            ).fetchone()
        finally:
            database.close()
        keyfile = KeyFile.at(self.data / "auth.key", create=False)
        return Ed25519PrivateKey.from_private_bytes(keyfile.open(kid, sealed))

    @property
    def image(self) -> dict[str, npt.NDArray[np.float32]]:
        return {"image": self.rows[:1]}

    def channel(self, name: str) -> grpc.Channel:
        """A bare TLS channel to a service's client port, or to the front of a worker."""
        if name in SERVICES:
            return dial(Target(self.endpoints[name], self.trust, f"{name}.service.sealane"))
        return dial(Target(self.stack.worker_address(name), self.trust, f"{name}.node.sealane"))

    def client_of(self, client_id: str, client_secret: str) -> Client:
        """A client of another account."""
        return connect(self.data, credentials=ClientCredentials(client_id, client_secret, project="default"))

    def push(self, model: str = MODEL) -> str:
        """The light model with both variants and their measurements; returns the version's name."""
        version = self.client.models.push(LIGHT / "litert-float.tflite", model, variant="litert-float", alias="latest")
        self.client.models.add_variant(version.name, LIGHT / "litert-int8.tflite", variant="litert-int8")
        measured = json.loads((LIGHT / "metrics.json").read_text())["variants"]
        for name, made in measured.items():
            if name in ("litert-float", "litert-int8"):
                measurement = variant_pb.Measurement(device_class="test", accuracy=made["accuracy"], rows=360)
                self.client.models.record_measurement(f"{version.name}/variants/{name}", measurement)
        return version.name

    def deploy_cameras(self, version: str) -> None:
        """Camera A bound to the site, camera B that prefers it; both serve when this returns."""
        self.client.deployments.create(CAMERA_A, version, data_class="restricted", residency=[SITE])
        self.client.deployments.create(CAMERA_B, version, data_class="internal", tier="edge")
        for name in (CAMERA_A, CAMERA_B):
            self.client.deployments.wait(name, 30)

    def places(self, deployment: str) -> set[tuple[str, int]]:
        """(node, epoch) of the copies of a deployment."""
        found = self.client.deployments.get(deployment)
        return {(item.node.removeprefix("nodes/"), item.epoch) for item in found.placements}

    def crash(self, name: str) -> None:
        """kill -9; returns when the watch has brought the process back and every worker is READY."""
        child = self.stack.child(name)
        before = child.pid
        assert before is not None
        below = descendants(before)
        child.crash()
        eventually(lambda: child.pid not in (None, before), f"{name} is started again")
        self.stack.wait_for_lanes()
        eventually(lambda: all(ended(pid) for pid in below), f"what {name} had started has ended with it")


class Background:
    """Threads that go on as long as a block does; `stopped` tells them of its end."""

    def __init__(self, *works: Callable[[], None]) -> None:
        self.stopped = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join(15)


class Callers(Background):
    """Predict for both cameras as long as they are asked to."""

    def __init__(self, site: LightSite) -> None:
        super().__init__(*(partial(self._call, name) for name in (CAMERA_A, CAMERA_B)))
        self.failures: list[str] = []
        self.answers = 0
        self._site = site

    def _call(self, camera: str) -> None:
        while not self.stopped.is_set():
            try:
                self._site.client.inference.predict(camera, self._site.image, timeout=10.0)
                self.answers += 1
            except SealaneError as error:
                self.failures.append(f"{camera}: {error.kind}: {error.message}")


@contextmanager
def running(
    data: Path,
    *,
    linked: bool = False,
    edge_lost_after: float = 30.0,
    settings: Mapping[str, Mapping[str, str]] | None = None,
    others: tuple[plan.WorkerPlan, ...] = (),
    sample_ratio: float = 0.0,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[LightSite]:
    """A suite on `data`, stopped at the end.

    `settings` are more of those of its services, `others` more workers, `environments` variables of workers by node.
    """
    workers = tuple(
        replace(
            item,
            environment={**item.environment, **FRONTS.get(item.node, {}), **(environments or {}).get(item.node, {})},
        )
        for item in (plan.CLOUD, replace(plan.EDGE, linked=linked), *others)
    )
    options = plan.Options(
        data, workers=workers, sample_ratio=sample_ratio, edge_lost_after=edge_lost_after, settings=settings or {}
    )
    with LocalStack(options) as stack, connect(data) as client:
        yield LightSite(stack, client)


def eventually(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait until something holds; errors of the suite on the way count as not yet."""
    deadline, last = time.monotonic() + seconds, ""
    while True:
        try:
            if holds():
                return
        except SealaneError as error:
            last = f"; last: {error.kind}: {error.message}"
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}{last}"
        time.sleep(0.05)
