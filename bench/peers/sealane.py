"""Sealane in the bench: the whole suite on this machine, a worker called directly and through the gateway.

A worker has no plaintext port and no way to leave authentication out. The bare row is therefore not a worker as it is
run, but its own front, engine and model processes put together without them (`serving/bare_worker.py`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bench.peers.load import Endpoint
from bench.peers.models import MODELS, Model
from bench.peers.servers import CORES, HERE, INFER, ROOT, NotStarted, Peer, Site, oip_answer, oip_request

from sealane.client import Client, connect
from sealane.errors import SealaneError
from sealane_local import plan
from sealane_local.stack import LocalStack

NODE = plan.CLOUD.node
READY_SECONDS = 60.0


class BareSealane(Peer):
    """The worker's parts behind a plaintext port, as the peers are measured."""

    def __init__(self) -> None:
        super().__init__("sealane-bare", "Sealane, bare parts, front in Python", models=tuple(MODELS))
        self.configuration = "the worker's front and model processes without TLS, token and trace: not how it runs"

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        return [str(python), str(HERE / "serving" / "bare_worker.py"), str(site.models), str(self.ports[0])]

    def settings(self, site: Site) -> dict[str, str]:
        """More of its environment: the malloc settings that every service is started with."""
        return {**plan.MALLOC, "PYTHONPATH": f"{HERE / 'serving'}:{ROOT}"}


class Sealane:
    """A suite of its own on each start; what was pushed stays on disk between rounds.

    Args:
        gateway: whether calls go through the gateway.
        front: what holds the worker's port, `native` or `python`.
    """

    environment = ""
    models = tuple(MODELS)

    def __init__(self, *, gateway: bool = False, front: str = "native") -> None:
        self._gateway = gateway
        self._front = front
        self.name = "sealane-gateway" if gateway else "sealane" if front == "native" else f"sealane-{front}"
        way = "through the gateway" if gateway else "direct" if front == "native" else "direct, front in Python"
        self.title = f"Sealane, {way}"
        self.configuration = f"TLS 1.3, token, 1 % of calls traced; one worker, instances of the networks: {CORES}"
        self._data = Path()
        self._stack: LocalStack | None = None
        self._client: Client | None = None

    def start(self, site: Site) -> None:
        """Start the suite, push and deploy what is not yet."""
        self._data = site.work / self.name
        worker = replace(plan.CLOUD, environment={"SEALANE_WORKER_FRONT": self._front})
        options = plan.Options(self._data, workers=(worker,), sample_ratio=0.01)
        try:
            self._stack = LocalStack(options)
            self._stack.start()
            self._client = connect(options.data)
            self._deploy(self._client, site.models)
        except (SealaneError, OSError) as error:
            self.stop()
            raise NotStarted(f"did not start: {error}"[:400]) from error

    def _deploy(self, client: Client, folder: Path) -> None:
        there = {each.name.rpartition("/")[2] for each in client.deployments.list()}
        for model in MODELS.values():
            if model.name not in there:
                version = client.models.push(_staged(model, folder, self._data / "pushed"), model.name)
                client.deployments.create(model.name, version.name)
        for model in MODELS.values():
            client.deployments.wait(model.name, READY_SECONDS)

    def stop(self) -> None:
        """End every process."""
        if self._client is not None:
            self._client.close()
        if self._stack is not None:
            self._stack.stop()
        self._client = self._stack = None

    def endpoint(self, model: Model) -> Endpoint:
        """Open Inference over TLS with a token, as any client of the protocol calls it."""
        assert self._stack is not None
        assert self._client is not None
        data = self._stack.options.data
        address, authority = self._stack.worker_address(NODE), f"{NODE}.node.sealane"
        if self._gateway:
            address, authority = (
                plan.endpoints(plan.Ports(self._stack.options))["inference"],
                "inference.service.sealane",
            )
        token = self._client.token("sealane-inference")
        metadata = {"authorization": f"Bearer {token}"}
        return Endpoint(address, INFER, oip_request(model), "", data / "pki" / "ca.pem", authority, metadata)

    def decode(self, answer: bytes) -> npt.NDArray[np.float32]:
        """The first output."""
        return oip_answer(answer)

    def pids(self) -> list[int]:
        """The worker, and the gateway where calls go through it."""
        assert self._stack is not None
        names = [NODE, "inference"] if self._gateway else [NODE]
        return [pid for pid in (self._stack.child(name).pid for name in names) if pid is not None]


def _staged(model: Model, folder: Path, into: Path) -> Path:
    """The model's file beside a manifest of its own."""
    place = into / model.name
    place.mkdir(parents=True, exist_ok=True)
    (place / "sealane.json").write_text(model.manifest(len(os.sched_getaffinity(0))))
    at = place / model.file
    if not at.exists():
        at.write_bytes((folder / model.file).read_bytes())
    return at
