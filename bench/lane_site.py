"""A gateway and workers with lanes to it, as processes of their own without a control plane; for the benches.

`python -m bench.lane_site gateway|echo|worker|doubling ...` is how they are started; :class:`Site` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import grpc
import grpc.aio
from bench.peers.load import Endpoint
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane import collector
from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceAnswer
from sealane.rpc import limits, sync_server
from sealane.rpc.call import Call
from sealane.rpc.channel import Target, connect
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.middleware import Chain
from sealane.security import jws, tls
from sealane.security.membership import Membership, Place
from sealane.security.tokens import ISSUER, Grant, issue
from sealane_auth import authority
from sealane_inference import app
from sealane_inference.config import Config
from sealane_inference.present import Present
from sealane_inference.routing import Endpoint as Copy
from sealane_inference.routing import Route, RouteTable
from sealane_worker.engine import Engine
from sealane_worker.lane_session import LaneWork
from sealane_worker.lanes import Lanes

INFER = "/inference.GRPCInferenceService/ModelInfer"
GATEWAY_NAME = "inference.service.sealane"
DEPLOYMENT = "projects/p/deployments/d"
#: As many as a worker of the suite has.
THREADS, MAX_IN_FLIGHT = 64, 48
#: Fixed, so that whoever makes tokens and whoever checks them agree; it protects nothing.
TOKEN_KEY = Ed25519PrivateKey.from_private_bytes(b"bench-only-key-of-32-bytes-long!")
_NOBODY = "127.0.0.1:1"


def token() -> str:
    """A token that may infer in the project."""
    grant = Grant("projects/p/serviceAccounts/a", "a@p", "p", app.AUDIENCE, ("infer",), lifetime=900)
    return issue(grant, key=TOKEN_KEY, issuer=ISSUER, now=time.time())


def prepare(folder: Path, *nodes: str) -> None:
    """Certificates and keys for all."""
    now = datetime.datetime.now(datetime.UTC)
    root = authority.make_root(now)
    (folder / "ca.pem").write_bytes(root.certificate_pem)
    public = TOKEN_KEY.public_key().public_bytes_raw()
    names = {"gateway": authority.service_names("inference"), **{node: authority.node_names(node) for node in nodes}}
    validity = authority.Validity(now - datetime.timedelta(minutes=5), now + datetime.timedelta(hours=6))
    for name, leaf_names in names.items():
        (folder / name).mkdir()
        (folder / name / "jwks.json").write_text(json.dumps({jws.thumbprint(public): jws.encode(public)}))
        private, request = tls.new_request()
        leaf = authority.issue_leaf(root, request, leaf_names, validity)
        chain = leaf.public_bytes(serialization.Encoding.PEM)
        tls.store(
            folder / name / "identity",
            private,
            tls.Issued(chain, root.certificate_pem, leaf_names.spiffe_id, {}),
        )


def identity(folder: Path, name: str) -> tls.PeerIdentity:
    """What :func:`prepare` made."""
    found = tls.load(folder / name / "identity")
    if found is None:
        raise SystemExit(f"{folder / name} has no identity; prepare the folder first")
    return found


def member(folder: Path, name: str) -> Membership:
    """Its membership, of which auth is away."""
    place = Place(folder / name, _NOBODY, _NOBODY, folder / "ca.pem")
    return Membership(place, identity(folder, name), app.AUDIENCE, SystemClock())


def announce(**facts: object) -> None:
    """Tell the parent."""
    print(json.dumps(facts), flush=True)


async def serve_gateway(folder: Path, nodes: list[str]) -> None:
    """The gateway as it is, with one route."""
    present = Present(SystemClock())
    config = Config(folder / "gateway", _NOBODY, _NOBODY, _NOBODY, folder / "ca.pem")
    gateway = app.build(config, member(folder, "gateway"), present)
    ports = await gateway.start(identity(folder, "gateway"))
    present.replace(RouteTable.of(1, [Route("p", "d", "m", "1", tuple(Copy(node, 1) for node in nodes))]))
    gateway.health.set(True)
    collector.settle()
    announce(**ports)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await gateway.stop()


async def serve_echo(folder: Path) -> None:
    """What the gateway is compared with: grpc.aio, the same listener, and nothing behind it."""

    async def echo(body: bytes, context: object) -> bytes:
        return body

    server = grpc.aio.server(options=limits.client_port(limits.DATA_MESSAGE_BYTES))
    service, _, name = INFER.lstrip("/").partition("/")
    handler = grpc.unary_unary_rpc_method_handler(echo)  # type: ignore[arg-type]  # its stubs know no coroutines
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(identity(folder, "gateway"), mesh=False))
    await server.start()
    announce(client=port)
    await server.wait_for_termination()


class Echo:
    """Any service that answers with its request."""

    def __getattr__(self, name: str) -> object:
        if not name[:1].isupper():
            raise AttributeError(name)
        return lambda message, call: call.body


class Doubling(Echo):
    """GRPCInferenceService and PredictionService that answer ``y`` = 2 ``x``."""

    @staticmethod
    def ModelInfer(message: None, call: Call) -> bytes:
        """One inference."""
        asked = openinference.decode_request(openinference_pb2.ModelInferRequest.FromString(call.body or b""))
        answer = InferenceAnswer(asked, "1", "serving_default", {"y": asked.inputs["x"] * 2})
        return openinference.encode_response(answer).SerializeToString()

    @staticmethod
    def Predict(message: None, call: Call) -> bytes:
        """One inference."""
        asked = tfserving.decode_request(tfserving_pb2.PredictRequest.FromString(call.body or b""))
        answer = InferenceAnswer(asked, "1", "serving_default", {"y": asked.inputs["x"] * 2})
        return tfserving.encode_response(answer).SerializeToString()


class EverythingServed(Engine):
    """Every deployment, at epoch 1."""

    def model(self, deployment: str) -> SimpleNamespace:  # type: ignore[override]  # as much of a model as lanes ask
        """It."""
        return _SERVED


_SERVED = SimpleNamespace(assignment=SimpleNamespace(epoch=1))


class NoParse:
    """The whole chain of a worker that only answers."""

    def before(self, call: Call) -> None:
        """Nothing is asked."""

    def after(self, call: Call, failure: object) -> None:
        """Nothing."""


def serve_worker(folder: Path, node: str, gateways: list[str], dispatcher: Dispatcher, engine: Engine) -> None:
    """A listener and a lane to each gateway, with the suite's own parts, until ended."""
    mine = identity(folder, node)
    server = sync_server.build(dispatcher, threads=THREADS)
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(mine, mesh=False))
    server.start()

    def dial(address: str) -> grpc.Channel:
        return connect(Target(address, mine.trust_bundle, GATEWAY_NAME, mine.private_key, mine.certificate_chain))

    pool = ThreadPoolExecutor(THREADS)
    lanes = Lanes(LaneWork(dispatcher, engine, pool, MAX_IN_FLIGHT), dial)
    lanes.keep(gateways)
    announce(client=port)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    lanes.stop()
    server.stop(0).wait()


def serve_plain_worker(folder: Path, node: str, gateways: list[str], servicer: Echo) -> None:
    """A worker without a model and without a guard."""
    services = (
        (openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"], "inference.GRPCInferenceService"),
        (tfserving_pb2.DESCRIPTOR.services_by_name["PredictionService"], "tensorflow.serving.PredictionService"),
    )
    served = [Served(servicer, service, name, frozenset({"ModelStreamInfer"})) for service, name in services]
    serve_worker(folder, node, gateways, Dispatcher(served, Chain([NoParse()])), EverythingServed())


@dataclass(slots=True)
class Site:
    """The processes of one bench."""

    folder: Path
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> dict[str, int]:
        """Start one; returns what it announces."""
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
        self.processes[name] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name} did not start; see above")
        told: dict[str, int] = json.loads(line)
        return told

    def endpoint(self, port: int, name: str, body: bytes, *, path: str = INFER) -> Endpoint:
        """How the load client calls it."""
        metadata = {"authorization": f"Bearer {token()}"}
        return Endpoint(
            f"127.0.0.1:{port}", path, body, trust=self.folder / "ca.pem", authority=name, metadata=metadata
        )

    def stop(self) -> None:
        """End all."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def site(folder: Path, *nodes: str) -> Iterator[Site]:
    """A prepared folder, and the end of all that was started."""
    prepare(folder, *nodes)
    made = Site(folder)
    try:
        yield made
    finally:
        made.stop()


def main(arguments: list[str]) -> int:
    """Serve what is named."""
    kind, folder, *rest = arguments
    if kind == "gateway":
        asyncio.run(serve_gateway(Path(folder), rest))
    elif kind == "echo":
        asyncio.run(serve_echo(Path(folder)))
    else:
        serve_plain_worker(Path(folder), rest[0], rest[1:], Echo() if kind == "worker" else Doubling())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
