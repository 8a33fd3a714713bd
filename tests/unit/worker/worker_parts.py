"""A worker's parts for tests: in-process peers without TLS, and a dispatcher whose callers are believed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from sealane.errors import SealaneError
from sealane.rpc import channel, limits
from sealane.rpc.call import Call, Identity, Peer
from sealane.rpc.dispatch import Dispatcher
from sealane.scheduler.v1 import fleet_service_pb2, fleet_service_pb2_grpc
from sealane.security.suites import KeyPair
from sealane_worker.engine import Engine

T = TypeVar("T")


class Local:
    """Servers of generated services without TLS, and channels to them, for one test."""

    def __init__(self) -> None:
        self.servers: list[grpc.Server] = []

    def serve(self, add: Callable[[T, grpc.Server], None], servicer: T) -> str:
        """Serve; returns the address."""
        server = grpc.server(ThreadPoolExecutor(8))
        add(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.servers.append(server)
        return f"127.0.0.1:{port}"

    def dial(self, address: str) -> grpc.Channel:
        """A channel that raises our errors, as the real ones do."""
        return grpc.intercept_channel(grpc.insecure_channel(address, limits.channel()), channel._Interceptor(None))

    def stop(self) -> None:
        """End the servers."""
        for server in self.servers:
            server.stop(0).wait()
        self.servers.clear()


class SilentFleet(fleet_service_pb2_grpc.FleetServiceServicer):
    """A scheduler that serves nothing; tests replace what they need."""

    def Connect(
        self, request_iterator: Iterator[fleet_service_pb2.NodeMessage], context: grpc.ServicerContext
    ) -> Iterator[fleet_service_pb2.SchedulerMessage]:
        """Refuse."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in this test")

    def RenewTask(
        self, request: fleet_service_pb2.RenewTaskRequest, context: grpc.ServicerContext
    ) -> fleet_service_pb2.RenewTaskResponse:
        """Refuse."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in this test")

    def FinishTask(
        self, request: fleet_service_pb2.FinishTaskRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        """Refuse."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in this test")


class KnownCaller:
    """Middleware in the place of token verification: the metadata names project and token."""

    def before(self, call: Call) -> None:
        """Believe the metadata."""
        call.identity = Identity(
            subject="tester",
            project=call.metadata.get("project", "p"),
            scopes=frozenset({"infer"}),
            token_id="token-1",
            key_thumbprint=call.metadata.get("thumbprint", ""),
        )

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Nothing."""


DEPLOYMENT = "projects/p/deployments/camera"
DIGEST = "sha256:" + "ab" * 32


@dataclass
class Front:
    """A worker's dispatcher over a real engine with the int8 digits model as deployment `camera`."""

    engine: Engine
    dispatcher: Dispatcher
    pair: KeyPair

    def call(self, path: str, message: Message, **metadata: str) -> bytes:
        """One call as a direct caller makes it."""
        route = self.dispatcher.route(path)
        call = Call(route.method, metadata, Peer(), time.monotonic() + 10, body=message.SerializeToString())
        return self.dispatcher.unary(route, call)
