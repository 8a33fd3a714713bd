"""The servers of others: instances or workers are as many as processors where that is faster.

What was set is printed beside the figures.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bench.peers import processes
from bench.peers.load import Endpoint
from bench.peers.models import MODELS, Model
from bench.peers.servers import CORES, HERE, Echo, Floor, Peer, Site, oip_request


class Triton(Peer):
    """tritonserver with its Python backend, as in the nvidia-pytriton wheel."""

    def __init__(self) -> None:
        super().__init__("triton", "Triton, Python backend", environment="triton")
        self.configuration = f"tritonserver of nvidia-pytriton, instance_group count {CORES} KIND_CPU, no batching"

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        package = next(python.parent.parent.glob("lib/python3.*/site-packages")) / "pytriton" / "tritonserver"
        version = package.parents[2].name.removeprefix("python")
        backends = site.work / self.name / "backends" / "python"
        backends.mkdir(parents=True, exist_ok=True)
        for file in (package / "backends" / "python").iterdir():
            _link(file, backends / file.name)
        stub = "triton_python_backend_stub"
        _link(package / "python_backend_stubs" / version / stub, backends / stub)
        repository = site.work / self.name / "models"
        for name in self.models:
            self._model(repository / name, MODELS[name], site)
        return [
            str(package / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends.parent}",
            f"--grpc-port={self.ports[0]}",
            f"--http-port={self.ports[1]}",
            f"--metrics-port={self.ports[2]}",
            "--grpc-address=127.0.0.1",
            "--http-address=127.0.0.1",
        ]

    def settings(self, site: Site) -> dict[str, str]:
        """More of its environment."""
        packages = next((site.environments / self.environment).glob("lib/python3.*/site-packages"))
        libraries = f"{packages / 'nvidia_pytriton.libs'}:{_libraries(site.environments / self.environment)}"
        return {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": f"{HERE / 'serving'}:{packages}"}

    def _model(self, folder: Path, model: Model, site: Site) -> None:
        (folder / "1").mkdir(parents=True, exist_ok=True)
        _link(HERE / "serving" / "triton_model.py", folder / "1" / "model.py")
        _link(HERE / "serving" / "running.py", folder / "1" / "running.py")
        sizes = (", ".join(map(str, shape)) for shape in (model.shape, model.output_shape))
        taken, given = sizes
        (folder / "config.pbtxt").write_text(
            f'name: "{model.name}" backend: "python" max_batch_size: 0\n'
            f'input [{{ name: "x" data_type: TYPE_{model.datatype} dims: [{taken}] }}]\n'
            f'output [{{ name: "y" data_type: TYPE_FP32 dims: [{given}] }}]\n'
            f"instance_group [{{ count: {CORES} kind: KIND_CPU }}]\n"
            f'parameters {{ key: "models" value: {{ string_value: "{site.models}" }} }}\n'
        )


class PyTriton(Peer):
    """pytriton: Triton that calls functions of a Python process."""

    def __init__(self) -> None:
        super().__init__("pytriton", "pytriton", environment="triton")
        self.configuration = f"Triton.bind with {CORES} inference functions a model, batching off"

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        ports = [str(port) for port in self.ports[:3]]
        return [str(python), str(HERE / "serving" / "pytriton_server.py"), str(site.models), *ports, str(CORES)]

    def settings(self, site: Site) -> dict[str, str]:
        """More of its environment."""
        return {"LD_LIBRARY_PATH": _libraries(site.environments / self.environment)}

    def stop(self) -> None:
        """End it, and free the shared memory that it leaves behind (the name is spelt so)."""
        left = [f"pytrtion{pid}-*" for pid in processes.tree(self.pids())]
        super().stop()
        for segment in (path for pattern in left for path in Path("/dev/shm").glob(pattern)):
            segment.unlink(missing_ok=True)


class MlServer(Peer):
    """MLServer with a custom runtime."""

    def __init__(self) -> None:
        super().__init__("mlserver", "MLServer", environment="mlserver")
        self.configuration = "custom runtime, parallel_workers 0 (faster than its default), metrics and logs off"

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        folder = site.work / self.name
        http, grpc_port, metrics = self.ports[1], self.ports[0], self.ports[2]
        common = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, "metrics_endpoint": None}
        ports = {"http_port": http, "grpc_port": grpc_port, "metrics_port": metrics}
        (folder / "settings.json").write_text(json.dumps({**common, **ports}))
        for name in self.models:
            (folder / name).mkdir(exist_ok=True)
            settings = {"name": name, "implementation": "mlserver_runtime.BenchModel"}
            settings["parameters"] = {"uri": str(site.models)}  # type: ignore[assignment]
            (folder / name / "model-settings.json").write_text(json.dumps(settings))
        return [str(python.parent / "mlserver"), "start", str(folder)]


class KServe(Peer):
    """KServe's Python server."""

    def __init__(self) -> None:
        super().__init__("kserve", "KServe Python", environment="kserve")
        self.configuration = "kserve.ModelServer, one process, defaults"

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        ports = [str(port) for port in self.ports[:2]]
        return [str(python), str(HERE / "serving" / "kserve_server.py"), str(site.models), *ports]


class LitServe(Peer):
    """LitServe over HTTP."""

    def __init__(self) -> None:
        super().__init__("litserve", "LitServe (HTTP)", environment="litserve")
        self.configuration = (
            f"workers_per_device 1, the networks {CORES} (faster so), JSON with the tensor in base64, no batching"
        )

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        script = HERE / "serving" / "litserve_server.py"
        return [str(python), str(script), str(site.models), str(self.ports[0]), str(CORES)]

    def endpoint(self, model: Model) -> Endpoint:
        """A path a model."""
        body = json.dumps({"x": base64.b64encode(model.sample().tobytes()).decode()}).encode()
        return Endpoint(f"127.0.0.1:{self.ports[0]}", f"/{model.name}", body, "application/json")

    def decode(self, answer: bytes) -> npt.NDArray[np.float32]:
        """Base64 in JSON."""
        return np.frombuffer(base64.b64decode(json.loads(answer)["y"]), np.float32)


class BentoMl(Peer):
    """BentoML over HTTP."""

    def __init__(self) -> None:
        super().__init__("bentoml", "BentoML (HTTP)", environment="bentoml")
        self.configuration = f"workers {CORES}, the tensor's raw bytes as the body, metrics off"

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        serving = str(HERE / "serving")
        arguments = ["--host", "127.0.0.1", "--port", str(self.ports[0]), "--working-dir", serving]
        return [str(python.parent / "bentoml"), "serve", "bentoml_service:Service", *arguments]

    def settings(self, site: Site) -> dict[str, str]:
        """More of its environment."""
        home = {"BENTOML_HOME": str(site.work / self.name), "BENTOML_DO_NOT_TRACK": "True"}
        return {"BENCH_MODELS": str(site.models), "BENCH_WORKERS": str(CORES), **home}

    def endpoint(self, model: Model) -> Endpoint:
        """A path a model."""
        body = model.sample().tobytes()
        return Endpoint(f"127.0.0.1:{self.ports[0]}", f"/{model.name}", body, "application/octet-stream")

    def decode(self, answer: bytes) -> npt.NDArray[np.float32]:
        """Raw bytes."""
        return np.frombuffer(answer, np.float32)


class RayServe(Peer):
    """Ray Serve with its gRPC proxy."""

    def __init__(self) -> None:
        super().__init__("ray", "Ray Serve (gRPC)", environment="ray")
        self.configuration = f"one deployment of {CORES} replicas behind its gRPC proxy, dashboard off"

    def command(self, site: Site, python: Path) -> list[str]:
        """What to run."""
        ports = [str(port) for port in self.ports[:2]]
        return [str(python), str(HERE / "serving" / "ray_server.py"), str(site.models), *ports, str(CORES)]

    def settings(self, site: Site) -> dict[str, str]:
        """More of its environment."""
        return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}

    def endpoint(self, model: Model) -> Endpoint:
        """Our own copy of the protocol: the proxy wants generated code of the service it plays."""
        path = "/sealane.compat.openinference.v2.GRPCInferenceService/ModelInfer"
        metadata = {"application": "bench"}
        return Endpoint(f"127.0.0.1:{self.ports[0]}", path, oip_request(model), metadata=metadata)


def _libraries(environment: Path) -> str:
    """Where the environment's own libpython lies: Triton's Python stubs must not find another one of the system."""
    ask = [str(environment / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"]
    return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()


def _link(file: Path, at: Path) -> None:
    if not at.is_symlink():
        at.symlink_to(file)


def peers() -> list[Peer]:
    """The floors, and everything that is not Sealane."""
    return [Floor(), Echo(), Triton(), PyTriton(), MlServer(), KServe(), LitServe(), BentoMl(), RayServe()]
