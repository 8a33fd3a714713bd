"""A gateway in the wrong hands: it has the real one's certificate, sees all that passes, does as a test tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from light_site import LightSite

from sealane.client import Client, ClientCredentials
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.security import tls

SEALED = "/sealane.inference.v1.SealedInferenceService/"
Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Captured:
    """A call as it passed."""

    path: str
    body: bytes
    metadata: Metadata

    @property
    def authorization(self) -> Metadata:
        """The caller's token, as a thief would use it."""
        return tuple((key, value) for key, value in self.metadata if key == "authorization")


@dataclass
class EvilGateway:
    """What it does with calls.

    Attributes:
        site: the suite that it stands before.
        context: makes the sealing context that callers get.
        answer: answers all other calls; default: forwards them to the worker edge-1.
        seen: everything that passed.
        port: where it listens.
    """

    site: LightSite
    context: Callable[[pb.GetSealingContextRequest], pb.SealingContext]
    answer: Callable[[Captured], bytes] | None = None
    seen: list[Captured] = field(default_factory=list)
    port: int = 0

    def send(self, worker: str, path: str, body: bytes, metadata: Metadata) -> bytes:
        """Send something to a worker's own listener; raises ``grpc.RpcError``."""
        with self.site.channel(worker) as channel:
            answer: bytes = channel.unary_unary(path)(body, timeout=20, metadata=metadata)
        return answer

    def serve(self, call: Captured) -> bytes:
        """One call of a victim."""
        self.seen.append(call)
        if call.path == SEALED + "GetSealingContext":
            return self.context(pb.GetSealingContextRequest.FromString(call.body)).SerializeToString()
        if self.answer is not None:
            return self.answer(call)
        return self.send("edge-1", call.path, call.body, call.authorization)

    @contextmanager
    def victim(self, account: str, secret: str) -> Iterator[Client]:
        """A client that believes in this gateway."""
        endpoints = {**self.site.endpoints, "inference": f"127.0.0.1:{self.port}"}
        credentials = ClientCredentials(account, secret, project="default")
        with Client(endpoints, trust_bundle=self.site.trust, credentials=credentials, timeout=10) as client:
            yield client


@contextmanager
def evil_gateway(
    site: LightSite, context: Callable[[pb.GetSealingContextRequest], pb.SealingContext]
) -> Iterator[EvilGateway]:
    """One that listens; it ends with the block."""
    gateway = EvilGateway(site, context)
    identity = tls.load(site.data / "inference" / "identity")
    assert identity is not None
    server = grpc.server(ThreadPoolExecutor(8), handlers=[_Everything(gateway)])
    gateway.port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(identity, mesh=False))
    server.start()
    try:
        yield gateway
    finally:
        server.stop(None).wait()


class _Everything(grpc.GenericRpcHandler):
    def __init__(self, gateway: EvilGateway) -> None:
        self._gateway = gateway

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Any path, one request and one answer."""

        def run(body: bytes, context: grpc.ServicerContext) -> bytes:
            metadata = tuple((key, value) for key, value in context.invocation_metadata() or ())
            try:
                return self._gateway.serve(Captured(details.method, body, metadata))
            except grpc.RpcError as failure:
                context.set_trailing_metadata(failure.trailing_metadata())  # type: ignore[attr-defined]  # a Call too
                context.abort(failure.code(), failure.details())  # type: ignore[attr-defined]  # a Call too
                return b""

        return grpc.unary_unary_rpc_method_handler(run)
