"""A worker's native front over real TLS, with real model processes behind it, and callers that a test names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from certificates import Pki
from google.protobuf.message import Message
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import SealaneError, Unauthenticated
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc import middleware
from sealane.rpc.call import Call, Identity
from sealane.rpc.dispatch import Dispatcher
from sealane.rpc.fairness import FairShare
from sealane.rpc.health import Health
from sealane.security import suites
from sealane.telemetry import Telemetry
from sealane.tensors import Array
from sealane_worker.app import MAX_IN_FLIGHT, THREADS, services
from sealane_worker.box import BoxLimits
from sealane_worker.deployment import Assignment
from sealane_worker.engine import Engine
from sealane_worker.express import Express
from sealane_worker.introduction import Introduction
from sealane_worker.native_server import NativeServer
from sealane_worker.pool import Host
from sealane_worker.sealed import RAW, SealedServicer
from sealane_worker.sealing import SealingKey
from sealane_worker.serving import Serving
from sealane_worker.spec import HostPolicy, ModelSpec
from sealane_worker.statistics import RunStatistics
from sealane_worker.streams import Streams

LIGHT = Path(__file__).parents[3] / "examples/digits/light"
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"


class Tokens:
    """In the place of the verifier: token -> who that is."""

    def __init__(self) -> None:
        self.known: dict[str, Identity] = {}
        self.seen: list[str] = []

    def add(self, token: str, project: str = "p", seconds: float = 300.0, **facts: object) -> str:
        """A new token."""
        scopes = frozenset({"infer"})
        expires = time.time() + seconds
        identity = Identity(f"{token}'s owner", project, scopes, token, expires=expires, **facts)  # type: ignore[arg-type]
        self.known[token] = identity
        return token

    def before(self, call: Call) -> None:
        """Set the caller, or refuse."""
        token = call.metadata.get("authorization", "").partition(" ")[2]
        self.seen.append(token)
        if token not in self.known:
            raise Unauthenticated("the token was revoked", reason="TOKEN_REVOKED")
        call.identity = self.known[token]

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Nothing."""


@dataclass
class NativeSite:
    """What the tests reach."""

    engine: Engine
    server: NativeServer
    tokens: Tokens
    express: Express
    spans: InMemorySpanExporter
    address: str
    trust: bytes
    dispatcher: Dispatcher
    chain: list[middleware.Middleware]
    sealing: SealingKey
    channels: list[grpc.Channel] = field(default_factory=list)

    def load(self, deployment: str, spec: ModelSpec, *, version: int = 1, epoch: int = 1, project: str = "p") -> None:
        """Serve a model."""
        name = f"projects/{project}/deployments/{deployment}"
        digest = f"sha256:{version:064x}"
        self.engine.load(Assignment(name, f"projects/{project}/models/{deployment}", version, "v", digest, epoch, spec))

    def channel(self) -> grpc.Channel:
        """A new connection."""
        credentials = grpc.ssl_channel_credentials(self.trust)
        options = [("grpc.ssl_target_name_override", "cloud-1.node.sealane"), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.secure_channel(self.address, credentials, [*options, ("grpc.max_receive_message_length", -1)])
        self.channels.append(channel)
        return channel

    def statistics(self, deployment: str, project: str = "p") -> RunStatistics:
        """Of a model."""
        return self.engine.get(f"projects/{project}/deployments/{deployment}").statistics

    def native(self, deployment: str) -> int:
        """Answers that went past Python."""
        return self.statistics(deployment).native


@dataclass
class Caller:
    """Calls with one token over one connection."""

    channel: grpc.Channel
    token: str = "good"

    def call(self, path: str, body: bytes, **metadata: str) -> tuple[bytes, grpc.Call]:
        """One call of bytes."""
        timeout = float(metadata.pop("timeout", "10"))
        sent = (("authorization", f"Bearer {self.token}"), *((k.replace("_", "-"), v) for k, v in metadata.items()))
        method = self.channel.unary_unary(path)
        answer, call = method.with_call(body, timeout=timeout, metadata=sent)
        return bytes(answer), call

    def infer(self, call: InferenceCall, **metadata: str) -> dict[str, Array]:
        """Over the Open Inference Protocol."""
        body = openinference.encode_request(call).SerializeToString()
        return openinference.decode_response(parsed(oip.ModelInferResponse(), self.call(INFER, body, **metadata)[0]))

    def predict(self, call: InferenceCall, **metadata: str) -> dict[str, Array]:
        """Over TensorFlow Serving."""
        body = tfserving.encode_request(call).SerializeToString()
        return tfserving.decode_response(parsed(tfs.PredictResponse(), self.call(PREDICT, body, **metadata)[0]))


def parsed(message: Message, body: bytes) -> object:
    """A message of bytes."""
    message.ParseFromString(body)
    return message


def digits_call(rows: Array, name: str = "digits", outputs: Sequence[str] = (), **target: str) -> InferenceCall:
    """A request to the example's model."""
    return InferenceCall(Target(name, **target), {"image": rows}, tuple(outputs))


def told(text: str, name: str = "hostile") -> InferenceCall:
    """A word with the hostile model, of the signature whose requests all look alike."""
    code = np.zeros((1, 64), np.uint8)
    code[0, : len(text)] = np.frombuffer(text.encode(), np.uint8)
    return InferenceCall(Target(name, signature="code"), {"code": code})


@contextmanager
def serving(
    folder: Path, limits: BoxLimits, sample_ratio: float = 0.0, suite: int = suites.HYBRID
) -> Iterator[NativeSite]:
    """The front, bound and started; without a model."""
    clock = SystemClock()
    engine = Engine(host=Host(limits, HostPolicy(native=True)))
    sealing = SealingKey(suites.generate(suite), lambda: grpc.insecure_channel("127.0.0.1:1"), clock)
    express, spans, tokens = Express(engine, clock, MAX_IN_FLIGHT, sealing), InMemorySpanExporter(), Tokens()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    telemetry_ = Telemetry(provider.get_tracer("test"), sample_ratio)
    counted = middleware.Limits(MAX_IN_FLIGHT, express.places)
    chain: list[middleware.Middleware] = [
        counted,
        middleware.Tracing(telemetry_, every_call=False),
        middleware.Deadline(),
        tokens,
        FairShare(MAX_IN_FLIGHT, express.places),
        middleware.Parse(RAW),
    ]
    pki = Pki()
    identity = pki.identity(folder / "identity", "node", "cloud-1")
    about = Introduction("cloud-1", folder, {}, 0.0, (), sealing, counted, "127.0.0.1:7")
    serving_, streams = Serving(engine, telemetry_, "cloud-1", express.learn), Streams(8)
    sealed = SealedServicer(serving_, express.opener, about, telemetry_, express.carried)
    dispatcher = Dispatcher(services(serving_, sealed, Health(), streams), middleware.Chain(chain))
    streams.attach(dispatcher)
    sealed.attach(dispatcher)
    server = NativeServer(dispatcher, express, threads=THREADS)
    port = server.bind("127.0.0.1:0", identity, sample_ratio)
    server.start()
    tokens.add("good")
    address, trust = f"127.0.0.1:{port}", pki.root_pem
    site = NativeSite(engine, server, tokens, express, spans, address, trust, dispatcher, chain, sealing)
    try:
        yield site
    finally:
        for channel in site.channels:
            channel.close()
        assert server.stop(2.0).wait(5.0)
        engine.close()


def learn(site: NativeSite, deployment: str, call: Callable[[], object]) -> None:
    """Have a call answered by Python until it needs none any more."""
    before = site.native(deployment)
    for _ in range(3):
        call()
    assert site.native(deployment) > before, "the first tells the caller, the second the request"


def wait(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)
