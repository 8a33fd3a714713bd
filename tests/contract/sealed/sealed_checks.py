"""What holds between any client and any worker that speak the sealed protocol."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

from sealed_cases import ANY_CHANGES, ENVELOPE_CHANGES, OPENING_CHANGES, SESSION_CHANGES, Arrival, Change, Vectors
from sealed_parties import REFUSALS, Functions, Got, Party, Sent, WorkerSide, World
from sealed_reader import INFER, MIB, OPEN_SESSION, OPEN_STREAM, Token

from sealane.inference.v1.sealed_inference_service_pb2 import SealedInferRequest, SealedInferResponse

LATER = Token("p1", "token-2")
PREDICT = "/tensorflow.serving.PredictionService/Predict"
AnswerChange = Callable[[SealedInferResponse], object]
SIZES = (0, 1, 1000, MIB, MIB + 1)


def on_wire(message: SealedInferRequest) -> SealedInferRequest:
    """As it arrives."""
    return SealedInferRequest.FromString(message.SerializeToString())


def answered(sent: Sent, got: Got, size: int = 10) -> None:
    """The answer reaches its client."""
    answer = b"\0" + os.urandom(size)
    assert sent.open(SealedInferResponse.FromString(got.answer(answer).SerializeToString())) == answer


def a_request(client: Party, worker: Party, suite: int, size: int) -> None:
    """A request by itself to one and to two workers, and their answers."""
    world, plaintext = World.new(suite), os.urandom(size)
    for workers, method in ((world.workers[:1], INFER), (world.workers, PREDICT)):
        sent = client.client(world).seal(plaintext, workers, method)
        for each in workers:
            got = worker.worker(each).open(on_wire(sent.message), world.token, world.jkt)
            assert got.plaintext == plaintext
            answered(sent, got, size)


def a_session(client: Party, worker: Party, suite: int) -> None:
    """A session: its requests come in another order, and one of them with the token that came after a refresh."""
    world = World.new(suite)
    near, far = client.client(world), worker.worker(world.workers[0])
    opening = near.begin(world.workers[0], OPEN_SESSION)
    answered(opening, far.open(on_wire(opening.message), world.token, world.jkt))
    tokens = [world.token, LATER, world.token, world.token]
    plaintexts = [b"", b"first", os.urandom(MIB + 1), b"last"]
    sent = [near.next(plaintext, token) for plaintext, token in zip(plaintexts, tokens, strict=True)]
    for index in (2, 0, 3, 1):
        got = far.open(on_wire(sent[index].message), tokens[index], world.jkt)
        assert got.plaintext == plaintexts[index]
        answered(sent[index], got)


def a_stream(client: Party, worker: Party, suite: int) -> None:
    """A stream and its end."""
    world = World.new(suite)
    near, far = client.client(world), worker.worker(world.workers[0])
    opening = near.begin(world.workers[0], OPEN_STREAM)
    answered(opening, far.open(on_wire(opening.message), world.token, world.jkt))
    for plaintext in (b"first", b"second"):
        sent = near.next(plaintext, world.token)
        got = far.open(on_wire(sent.message), world.token, world.jkt)
        assert got.plaintext == plaintext
        answered(sent, got)
    end = near.next(b"", world.token, end=True)
    assert end.message.session.end
    assert (end.message.session.counter, len(end.message.chunks)) == (2, 1)
    got = far.open(on_wire(end.message), world.token, world.jkt)
    assert got.plaintext == b""
    assert end.open(got.answer(b"\0")) == b"\0"


def altered_requests(client: Party, worker: Party, suite: int) -> None:
    """A request by itself and an opening open as they were sealed, and after no change."""
    world = World.new(suite)
    arrival = Arrival(world.draft(INFER), world.token, world.jkt, world.workers[0])

    def fresh(_: Arrival) -> WorkerSide:
        return worker.worker(world.workers[0])

    sent = client.client(world).seal(os.urandom(MIB + 1000), world.workers)
    none_opens(replace(arrival, message=sent.message), ANY_CHANGES | ENVELOPE_CHANGES, fresh)
    opening = client.client(world).begin(world.workers[0], OPEN_SESSION)
    none_opens(replace(arrival, message=opening.message), OPENING_CHANGES, fresh)


def altered_session_requests(client: Party, worker: Party, suite: int) -> None:
    """The same of a request of a session."""
    world = World.new(suite)
    near = client.client(world)
    opening = near.begin(world.workers[0], OPEN_SESSION)
    sent = near.next(os.urandom(MIB + 1000), world.token)

    def with_session(_: Arrival) -> WorkerSide:
        far = worker.worker(world.workers[0])
        far.open(on_wire(opening.message), world.token, world.jkt)
        return far

    arrival = Arrival(sent.message, world.token, world.jkt, world.workers[0])
    none_opens(arrival, ANY_CHANGES | SESSION_CHANGES, with_session)


def none_opens(arrival: Arrival, changes: dict[str, Change], worker: Callable[[Arrival], WorkerSide]) -> None:
    """Each change is refused by a worker that takes the message as it was."""
    opened = []
    for name, change in {"as it was": lambda _: None, **changes}.items():
        changed = replace(arrival, message=on_wire(arrival.message))
        result = change(changed)
        changed = result if isinstance(result, Arrival) else changed
        far = worker(changed)
        far.variant = changed.worker.variant
        try:
            far.open(changed.message, changed.token, changed.jkt)
        except REFUSALS:
            continue
        opened.append(name)
    assert opened == ["as it was"]


def altered_answers(client: Party, worker: Party, suite: int, changes: dict[str, AnswerChange]) -> None:
    """An answer opens as it was sealed, and after no change, nor for another request, nor as another worker's."""
    world = World.new(suite)
    near = client.client(world)
    sent, other = near.seal(b"request", world.workers), near.seal(b"request", world.workers)
    got = [worker.worker(each).open(on_wire(sent.message), world.token, world.jkt) for each in world.workers]
    plaintext = b"\0" + os.urandom(MIB)
    answer = got[0].answer(plaintext)
    assert sent.open(answer) == plaintext
    opened = []
    for name, change in changes.items():
        altered = SealedInferResponse.FromString(answer.SerializeToString())
        change(altered)
        if opens(sent, altered):
            opened.append(name)
    swapped = SealedInferResponse.FromString(answer.SerializeToString())
    swapped.key_id = world.workers[1].key_id
    assert opened == []
    assert not opens(sent, swapped)
    assert not opens(other, answer)


def opens(sent: Sent, answer: SealedInferResponse) -> bool:
    """Whether the client takes it."""
    try:
        sent.open(answer)
    except REFUSALS:
        return False
    return True


# -- vectors -------------------------------------------------------------------------------------------------------


def opened_by(functions: Functions | ModuleType, vectors: Vectors) -> tuple[int, int]:
    """Functions find each key of each vector, and open all messages and answers; how many there were."""
    answers = 0
    for each in vectors.exchanges:
        workers = [worker for worker in vectors.workers if worker.key_id in each.keys]
        assert len(workers) == len(each.keys)
        for worker in workers:
            if each.opening is None:
                keys, plaintext = functions.open_request(each.message, each.token, each.jkt, worker)
            else:
                secret = each.opening.keys[worker.key_id].data_key
                keys, plaintext = functions.open_in_session(each.message, each.token, secret, worker.variant)
            assert (each.id, keys, plaintext or b"") == (each.id, each.keys[worker.key_id], each.plaintext)
        for answer in each.answers:
            assert functions.open_answer(each.keys, answer.message) == answer.plaintext
            answers += 1
    return len(vectors.exchanges), answers
