"""A cut between a gateway and a worker that both live on: a call that may run once is answered, and ran once."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
from gateway_harness import TLS_NAME, Gateway, wait_for
from test_gateway import SEALED, envelope, route

from sealane.rpc.call import Call
from sealane.rpc.channel import Target, connect
from sealane_inference.routing import Endpoint
from sealane_worker.lane_session import LaneWork
from sealane_worker.lanes import Lanes


class Relay:
    """A cable that can be cut: every connection through it breaks, later ones go through."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self.cut_after = -1
        """Bytes in all after which it is cut by itself; negative: never."""
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.cuts += 1
        while self._open:
            end = self._open.pop()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
                if self.cut_after > 0:
                    self.cut_after = max(self.cut_after - len(data), 0)
                    if not self.cut_after:
                        self.cut()
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Model:
    """What the worker runs: waits until it may answer, and notes what happened to it."""

    def __init__(self) -> None:
        self.ran: list[bytes] = []
        self.go_on = threading.Event()
        self.cancelled = threading.Event()
        self.answer: Callable[[bytes], bytes] = lambda body: b"answer to " + body[-10:]

    def route(self, path: str) -> SimpleNamespace:
        return SimpleNamespace(method=None)

    def unary(self, route: object, call: Call) -> bytes:
        self.ran.append(call.body or b"")
        call.on_cancel(self.cancelled.set)
        assert self.go_on.wait(20)
        return self.answer(call.body or b"")

    def model(self, deployment: str) -> SimpleNamespace:
        return SimpleNamespace(assignment=SimpleNamespace(epoch=1))


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def relay(gateway: Gateway, model: Model) -> Iterator[Relay]:
    """The suite's own lanes of a worker `w`, through a cable to the gateway."""
    identity = gateway.authority.identity(gateway.directory / "w", "spiffe://sealane/node/w", "w.node.sealane")
    relay = Relay(gateway.mesh)

    def dial(address: str) -> grpc.Channel:
        return connect(
            Target(address, identity.trust_bundle, TLS_NAME, identity.private_key, identity.certificate_chain)
        )

    with ThreadPoolExecutor(8) as pool:
        lanes = Lanes(LaneWork(model, model, pool, 48), dial)  # type: ignore[arg-type]
        lanes.keep([relay.address])
        wait_for(lambda: gateway.present.lane("w") is not None)
        gateway.routes(route(Endpoint("w", 1, key_id="k1", statement="s")))
        yield relay
        model.go_on.set()
        lanes.stop()
        relay.close()


def sealed_call(gateway: Gateway, answers: list[object]) -> threading.Thread:
    def run() -> None:
        try:
            answers.append(gateway.call(SEALED + "SealedInfer", envelope("k1")))
        except grpc.RpcError as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_call_under_way_outlives_the_cut_and_runs_once(gateway: Gateway, relay: Relay, model: Model) -> None:
    answers: list[object] = []
    thread = sealed_call(gateway, answers)
    wait_for(lambda: len(model.ran) == 1)
    relay.cut()
    wait_for(lambda: gateway.present.lane("w") is None)
    model.go_on.set()
    thread.join(15)
    assert answers == [b"answer to " + envelope("k1")[-10:]]
    assert len(model.ran) == 1


def test_a_cut_in_the_middle_of_a_large_answer_costs_no_byte(gateway: Gateway, relay: Relay, model: Model) -> None:
    large = bytes(range(256)) * 80_000
    model.answer = lambda body: large
    model.go_on.set()
    relay.cut_after = 8_000_000
    credentials = grpc.ssl_channel_credentials(gateway.authority.pem)
    options = [("grpc.ssl_target_name_override", TLS_NAME), ("grpc.max_receive_message_length", -1)]
    with grpc.secure_channel(gateway.client, credentials, options) as channel:
        metadata = [("authorization", f"Bearer {gateway.authority.token()}")]
        answer = channel.unary_unary(SEALED + "SealedInfer")(envelope("k1"), timeout=20, metadata=metadata)
    assert answer == large
    assert relay.cuts == 1
    assert len(model.ran) == 1


def test_who_hangs_up_is_not_computed_for(gateway: Gateway, relay: Relay, model: Model) -> None:
    metadata = [("authorization", f"Bearer {gateway.authority.token()}")]
    future = gateway.channel.unary_unary(SEALED + "SealedInfer").future(envelope("k1"), timeout=20, metadata=metadata)
    wait_for(lambda: len(model.ran) == 1)
    future.cancel()
    assert model.cancelled.wait(10), "the worker heard of it while the call ran"
