"""The servers of the bench: how each is started, where it is called, what its answer looks like; and the floors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc
import numpy as np
import numpy.typing as npt
from bench.peers import processes
from bench.peers.load import Endpoint
from bench.peers.models import MODELS, Model

from sealane.compat.openinference.v2 import openinference_pb2 as oip

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CORES = len(os.sched_getaffinity(0))
INFER = "/inference.GRPCInferenceService/ModelInfer"
START_SECONDS = 90.0
PEER_MODELS = ("mlp", "image", "mobilenetv2", "mobilenetv2-int8")


class NotStarted(Exception):
    """A server that cannot be measured here; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Site:
    """Folders of a run: environments of the peers, model files, logs and whatever a server writes."""

    environments: Path
    models: Path
    work: Path


class Server(Protocol):
    """One server. The order of calls: start, endpoints and pids, stop."""

    name: str
    title: str
    configuration: str
    environment: str
    models: tuple[str, ...]

    def start(self, site: Site) -> None:
        """Return when it answers.

        Raises:
            NotStarted: it cannot.
        """
        ...

    def stop(self) -> None:
        """End it and all that it started."""
        ...

    def endpoint(self, model: Model) -> Endpoint:
        """Where the model is called, with one sample as the body."""
        ...

    def decode(self, answer: bytes) -> npt.NDArray[np.float32]:
        """The numbers of an answer."""
        ...

    def pids(self) -> list[int]:
        """The processes that work for a call, without those below them."""
        ...


def oip_request(model: Model) -> bytes:
    """A sample as an Open Inference request with raw contents."""
    sample = model.sample()
    request = oip.ModelInferRequest(model_name=model.name, raw_input_contents=[sample.tobytes()])
    request.inputs.add(name=model.input, datatype=model.datatype, shape=sample.shape)
    return request.SerializeToString()


def oip_answer(answer: bytes) -> npt.NDArray[np.float32]:
    """The first output, raw or typed."""
    response = oip.ModelInferResponse.FromString(answer)
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], np.float32)
    return np.array(response.outputs[0].contents.fp32_contents, np.float32)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Peer:
    """A process of a Python environment of its own, called with Open Inference over plaintext gRPC."""

    name: str = ""
    title: str = ""
    configuration: str = ""
    environment: str = ""
    models: tuple[str, ...] = PEER_MODELS
    ports: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        raise NotImplementedError

    def settings(self, site: Site) -> dict[str, str]:
        """More of its environment."""
        return {}

    def start(self, site: Site) -> None:
        """Start it in its environment and wait for a first answer."""
        python = site.environments / self.environment / "bin" / "python"
        if self.environment and not python.exists():
            raise NotStarted(
                f"not installed: requirements/peers/{self.environment}.in is not in {python.parent.parent}"
            )
        python = python if self.environment else Path(sys.executable)
        self.ports = [free_port() for _ in range(4)]
        folder = site.work / self.name
        folder.mkdir(parents=True, exist_ok=True)
        inherited = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
        environment = {
            **inherited,
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{HERE / 'serving'}:{ROOT / 'src'}",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
            **self.settings(site),
        }
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(site, python),
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._wait(folder / "log")

    def _wait(self, log: Path) -> None:
        deadline, last = time.monotonic() + START_SECONDS, ""
        for model in (MODELS[name] for name in self.models):
            while True:
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    told = log.read_text(errors="replace").strip().splitlines()[-3:]
                    raise NotStarted(f"did not start: {last or ' / '.join(told)}"[:400])
                try:
                    self.endpoint(model).ask(5.0)
                    break
                except (OSError, grpc.RpcError) as error:
                    last = error.details() if isinstance(error, grpc.Call) else str(error)
                    time.sleep(0.2)

    def stop(self) -> None:
        """End the process and all below it."""
        if self.process is not None:
            processes.end(self.process)
            self.process = None

    def endpoint(self, model: Model) -> Endpoint:
        """Open Inference at the first port."""
        return Endpoint(f"127.0.0.1:{self.ports[0]}", INFER, oip_request(model))

    def decode(self, answer: bytes) -> npt.NDArray[np.float32]:
        """The first output."""
        return oip_answer(answer)

    def pids(self) -> list[int]:
        """The process."""
        return [self.process.pid] if self.process is not None else []


class Floor(Peer):
    """grpcio's synchronous server and a runtime, in one process, with no server around them."""

    def __init__(self) -> None:
        super().__init__("floor", "floor: grpcio sync + runtime, 1 process", models=tuple(MODELS))
        self.configuration = (
            "grpcio thread pool of 4, ONNX Runtime or LiteRT in the handler, no TLS, our malloc settings"
        )

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        return [str(python), str(HERE / "serving" / "floor.py"), "serve", str(site.models), str(self.ports[0]), "4"]

    def settings(self, site: Site) -> dict[str, str]:
        """More of its environment."""
        from sealane_local.plan import MALLOC

        return dict(MALLOC)


class Echo(Floor):
    """The same without a model: bytes out as they come in."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.title = "echo", "floor: grpcio sync echo, no model"
        self.configuration = "grpcio thread pool of 4, bytes handed back unparsed"

    def endpoint(self, model: Model) -> Endpoint:
        """The request's bytes to a method that parses nothing."""
        return Endpoint(f"127.0.0.1:{self.ports[0]}", "/bench.Echo/Call", oip_request(model))

    def decode(self, answer: bytes) -> npt.NDArray[np.float32]:
        """Nothing to compare: the answer is the request."""
        return np.empty(0, np.float32)
