"""The whole suite on one machine: a process per service and worker, on loopback, TLS everywhere."""

from __future__ import annotations

import json
import threading
import time
from types import TracebackType

from sealane.client import Client, connect
from sealane.errors import SealaneError, Unavailable
from sealane_local import plan
from sealane_local.child import Child, Command
from sealane_local.join import Subject, write_admin, write_join_tokens
from sealane_local.lock import FolderLock
from sealane_local.plan import Options, WorkerPlan

START_SECONDS = 60.0
STOP_SECONDS = 10.0
_WATCH_SECONDS = 0.2


class LocalStack:
    """Starts, watches and stops the processes. Use it as a context manager."""

    def __init__(self, options: Options) -> None:
        options.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.sandbox = "none"
        """Level at which models run here, as the workers tell."""
        self.options = options
        self._lock = FolderLock(options.data).take()
        self._ports = plan.Ports(options)
        self._children: dict[str, Child] = {}
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> LocalStack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until it serves.

        Raises:
            Unavailable: something did not start.
            OSError: a folder or a port is not ours to use.

        Whatever ends the start, an interrupt too, everything is stopped again.
        """
        complete = False
        try:
            self._start()
            complete = True
        finally:
            if not complete:
                self.stop()

    def _start(self) -> None:
        data = self.options.data
        auth = self._service("auth")
        auth.start()
        auth.wait_serving(START_SECONDS)
        (data / "pki").mkdir(exist_ok=True)
        (data / "pki" / "ca.pem").write_bytes((data / "auth" / "pki" / "root.pem").read_bytes())
        token_url = f"https://{self._ports.address('auth_http')}/oauth2/token"
        write_admin(data / "auth" / "admin.json", data / "admin.json", token_url)
        (data / "endpoints.json").write_text(json.dumps(plan.endpoints(self._ports), indent=2))
        with connect(data) as client:
            write_join_tokens(client, self._subjects())
        for service in plan.SERVICES:
            self._service(service).start()
        for worker in self.options.workers:
            if worker.linked:
                self._link(worker).start()
            self._worker(worker).start()
        for child in self._children.values():
            child.wait_serving(START_SECONDS)
        with connect(data) as client:
            self._wait_for_nodes(client)
        self._watcher.start()

    def stop(self) -> None:
        """Drain and end everything this stack started."""
        # Workers first, auth last: whoever depends on others goes before them.
        for child in reversed(list(self._children.values())):
            child.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._children.values():
            child.join(max(0.1, deadline - time.monotonic()))
        # The watch goes last: what it started anew would end with its thread, without a drain.
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._lock.release()

    def child(self, name: str) -> Child:
        """A process by name: a service, a node id, or ``link-<node>``."""
        return self._children[name]

    def worker_address(self, node: str) -> str:
        """Where a worker's front listens."""
        return self._ports.address(f"worker_{node}")

    def wait_for_lanes(self, seconds: float = 20.0) -> None:
        """Wait until every process serves again and every worker is READY at the scheduler."""
        for child in self._children.values():
            if child.pid is not None:
                child.wait_serving(seconds)
        with connect(self.options.data) as client:
            self._wait_for_nodes(client)

    def _wait_for_nodes(self, client: Client) -> None:
        wanted = {worker.node for worker in self.options.workers if self._children[worker.node].pid is not None}
        deadline = time.monotonic() + START_SECONDS
        ready: set[str] = set()
        while not wanted <= ready:
            if time.monotonic() > deadline:
                raise Unavailable(f"{sorted(wanted - ready)} did not join in {START_SECONDS:g} s; see the logs")
            try:
                nodes = [node for node in client.nodes.list() if node.state == 1]
                ready = {node.name.removeprefix("nodes/") for node in nodes}
                self.sandbox = next((node.labels["sandbox"] for node in nodes), self.sandbox)
            except SealaneError:
                ready = set()
            time.sleep(0.05)

    def _subjects(self) -> list[Subject]:
        data, options = self.options.data, self.options
        subjects = [
            Subject(name, data / name / "identity", plan.join_token_path(options, name)) for name in plan.SERVICES
        ]
        for worker in options.workers:
            identity = plan.worker_dir(options, worker.node) / "identity"
            token = plan.join_token_path(options, worker.node)
            subjects.append(Subject(worker.node, identity, token, place=worker.place))
        return subjects

    def _service(self, name: str) -> Child:
        environment = plan.service_environment(self.options, self._ports, name)
        return self._child(name, f"sealane_{name}", (), environment)

    def _worker(self, worker: WorkerPlan) -> Child:
        environment = plan.worker_environment(self.options, self._ports, worker)
        return self._child(worker.node, "sealane_worker", (), environment)

    def _link(self, worker: WorkerPlan) -> Child:
        arguments = tuple(plan.link_arguments(self._ports, worker))
        return self._child(f"link-{worker.node}", "sealane_local.link", arguments, {})

    def _child(self, name: str, module: str, arguments: tuple[str, ...], environment: dict[str, str]) -> Child:
        data = self.options.data
        writes = None if module == "sealane_local.link" else data / name
        if module == "sealane_worker":
            writes = plan.worker_dir(self.options, name)
        command = Command(name, module, arguments, environment, data / "logs" / f"{name}.log", writes)
        self._children[name] = Child(command)
        return self._children[name]

    def _watch(self) -> None:
        while not self._stop.wait(_WATCH_SECONDS):
            for child in self._children.values():
                child.watch()
