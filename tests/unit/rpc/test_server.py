"""The asyncio server and the client channel against each other, on loopback."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    SealaneError,
    Unauthenticated,
    Unavailable,
)
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.registry.v1 import artifact_service_pb2_grpc
from sealane.rpc.call import Call
from sealane.rpc.channel import _Interceptor, retrying
from sealane.rpc.dispatch import Served
from sealane.rpc.middleware import Chain
from sealane.rpc.order import Guard, standard
from sealane.rpc.server import build
from sealane.security import jws, tokens
from sealane.security.keys import KeySet, Published
from sealane.security.revocations import Kind, Revocations, Revoked
from sealane.security.tokens import ISSUER, Grant, TokenVerifier

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
_BASE = "/sealane.registry.v1.ArtifactService"


class Artifacts:
    """Behaves as the parent or the name asks."""

    def __init__(self) -> None:
        self.tries = 0
        self.ended = threading.Event()

    async def StartUpload(self, request: pb.StartUploadRequest, call: Call) -> pb.Upload:
        self.tries += 1
        if request.size_bytes == 1 and self.tries < 3:
            raise Unavailable("not yet", reason="NOT_YET")
        if request.size_bytes == 2:
            raise ResourceExhausted("slow down", retry_after=1.5)
        if request.size_bytes == 3:
            await asyncio.sleep(30)
        return pb.Upload(offset=self.tries)

    async def UploadChunks(self, requests: AsyncIterator[pb.UploadChunksRequest], call: Call) -> pb.Upload:
        return pb.Upload(offset=sum([len(request.data) async for request in requests]))

    async def FinishUpload(self, request: pb.FinishUploadRequest, call: Call) -> bytes:
        raise Aborted("lost a race", reason="RACE", offset="7")

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, call: Call
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        for offset in range(request.offset):
            yield pb.DownloadArtifactResponse(offset=offset)
        if request.length:
            try:
                await asyncio.sleep(30)
            finally:
                self.ended.set()
        raise InvalidArgument("enough", field="offset")

    async def ReleaseArtifactKey(self, request: pb.ReleaseArtifactKeyRequest, call: Call) -> pb.ReleasedArtifactKey:
        return pb.ReleasedArtifactKey()


class Bearer:
    """A good token on every call; a later epoch once one was refused."""

    def __init__(self, subject: str = "a") -> None:
        self.subject, self.epoch, self.refusals = subject, 0, 0

    def metadata(self, method_path: str) -> dict[str, str]:
        grant = Grant(self.subject, "a@p", "p", "sealane-registry", ("models:write", "models:read"), epoch=self.epoch)
        return {"authorization": f"Bearer {tokens.issue(grant, key=KEY, issuer=ISSUER, now=time.time())}"}

    def refused(self, failure: SealaneError) -> bool:
        self.refusals += 1
        self.epoch += 1
        return failure.reason == "TOKEN_REVOKED"


REVOCATIONS = Revocations(SystemClock())


@pytest.fixture(scope="module")
def artifacts() -> Artifacts:
    return Artifacts()


@pytest.fixture(scope="module")
def address(artifacts: Artifacts) -> Iterator[str]:
    bound: Future[str] = Future()
    stop = threading.Event()

    async def serve() -> None:
        keys = KeySet(lambda: Published({jws.thumbprint(PUBLIC): jws.encode(PUBLIC)}))
        verifier = TokenVerifier(
            keys, issuer=ISSUER, audience="sealane-registry", clock=SystemClock(), revocations=REVOCATIONS
        )
        chain = Chain(standard(telemetry_=telemetry.disabled(), guard=Guard(verifier, REVOCATIONS)))
        served = Served(artifacts, pb.DESCRIPTOR.services_by_name["ArtifactService"])
        server = build([served], chain, mesh=True)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        bound.set_result(f"127.0.0.1:{port}")
        await asyncio.to_thread(stop.wait)
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    yield bound.result(10)
    stop.set()
    thread.join()


@pytest.fixture
def raw(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def stub(raw: grpc.Channel) -> artifact_service_pb2_grpc.ArtifactServiceStub:
    return artifact_service_pb2_grpc.ArtifactServiceStub(grpc.intercept_channel(raw, _Interceptor(Bearer())))


def start(size: int) -> pb.StartUploadRequest:
    return pb.StartUploadRequest(parent="projects/p", size_bytes=size)


def test_a_declared_safe_call_is_retried(
    stub: artifact_service_pb2_grpc.ArtifactServiceStub, artifacts: Artifacts
) -> None:
    artifacts.tries = 0
    assert stub.StartUpload(start(1), timeout=5).offset == 3


def test_a_refusal_carries_its_details(stub: artifact_service_pb2_grpc.ArtifactServiceStub) -> None:
    with pytest.raises(ResourceExhausted) as load:
        stub.StartUpload(start(2), timeout=5)
    assert load.value.retry_after == 1.5
    with pytest.raises(Aborted) as race:
        stub.FinishUpload(pb.FinishUploadRequest(name="projects/p/uploads/u"), timeout=5)
    assert (race.value.reason, race.value.metadata["offset"]) == ("RACE", "7")


def test_the_deadline_holds(stub: artifact_service_pb2_grpc.ArtifactServiceStub) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        stub.StartUpload(start(3), timeout=0.3)
    assert time.monotonic() - started < 5


def test_streams_both_ways_and_their_errors(stub: artifact_service_pb2_grpc.ArtifactServiceStub) -> None:
    chunks = [pb.UploadChunksRequest(data=b"x" * size) for size in (1, 2, 3)]
    assert stub.UploadChunks(iter(chunks), timeout=5).offset == 6
    got = []
    with pytest.raises(InvalidArgument) as caught:
        for item in stub.DownloadArtifact(
            pb.DownloadArtifactRequest(name="projects/p/artifacts/x", offset=3), timeout=5
        ):
            got.append(item.offset)
    assert got == [0, 1, 2] and caught.value.field == "offset"


def test_malformed_bodies_are_refused_and_the_connection_goes_on(raw: grpc.Channel) -> None:
    metadata = tuple(Bearer().metadata("").items())
    broken = raw.unary_unary(f"{_BASE}/StartUpload")
    for _ in range(300):  # more than the streams that one connection may have open
        with pytest.raises(grpc.RpcError) as caught:
            broken(b"\xff\xff\xff", metadata=metadata, timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "DecodeError" not in caught.value.details()
    answer = broken(start(0).SerializeToString(), metadata=metadata, timeout=5)
    assert pb.Upload.FromString(answer).offset > 0


def test_two_tokens_are_one_too_many(raw: grpc.Channel) -> None:
    token = Bearer().metadata("")["authorization"]
    with pytest.raises(grpc.RpcError) as caught:
        raw.unary_unary(f"{_BASE}/StartUpload")(
            start(0).SerializeToString(), metadata=(("authorization", token), ("authorization", token)), timeout=5
        )
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_unsafe_call_and_other_errors_are_not_retried() -> None:
    for failure, safe in ((Unavailable("x"), False), (InvalidArgument("x"), True)):
        tries = []

        def attempt(failure: SealaneError = failure, tries: list[int] = tries) -> None:
            tries.append(1)
            raise failure

        with pytest.raises(type(failure)):
            retrying(attempt, deadline=time.monotonic() + 5, safe=safe)
        assert len(tries) == 1


def revoke(subject: str, epoch: int = 1) -> None:
    REVOCATIONS.take(REVOCATIONS.sequence + 1, [Revoked(Kind.SUBJECT, subject, number=float(epoch))])


def test_a_stream_under_way_ends_when_its_caller_is_cut_off(raw: grpc.Channel, artifacts: Artifacts) -> None:
    streams = []
    for subject in ("thief", "honest"):
        intercepted = grpc.intercept_channel(raw, _Interceptor(Bearer(subject)))
        request = pb.DownloadArtifactRequest(name="projects/p/artifacts/a", offset=1, length=1)
        stream = artifact_service_pb2_grpc.ArtifactServiceStub(intercepted).DownloadArtifact(request, timeout=20)
        assert next(stream).offset == 0
        streams.append(stream)
    artifacts.ended.clear()
    revoke("thief")
    with pytest.raises(Unauthenticated) as caught:
        next(streams[0])
    assert caught.value.reason == "TOKEN_REVOKED"
    assert artifacts.ended.wait(5), "the servicer was told"
    artifacts.ended.clear()
    revoke("somebody else")
    assert not artifacts.ended.wait(0.2), "another stream goes on"
    streams[1].cancel()


def test_a_token_that_is_no_longer_taken_is_replaced_once(raw: grpc.Channel) -> None:
    credentials = Bearer("victim")
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(grpc.intercept_channel(raw, _Interceptor(credentials)))
    stub.StartUpload(start(0), timeout=5)
    revoke("victim")
    stub.StartUpload(start(0), timeout=5)
    assert (credentials.refusals, credentials.epoch) == (1, 1)
    revoke("victim", epoch=9)
    with pytest.raises(Unauthenticated):
        stub.StartUpload(start(0), timeout=5)
    assert credentials.refusals == 2
