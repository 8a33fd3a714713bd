"""The sealed protocol against an implementation that was made from its page alone, by vectors and both ways."""

from __future__ import annotations

import pytest
import sealed_checks as checks
import sealed_reader as reader
from native_library import NEEDS_LIBRARY, OPENERS, opener_of
from sealed_cases import ANSWER_CHANGES, Vectors, kept, read
from sealed_parties import NATIVE, OURS, READER, OurWorker, Party
from sealed_vectors import Maker

from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.security.envelope import Sealed, answer_opener
from sealane.security.opener import Opener
from sealane.security.sealed_session import SessionCiphers, session_answer_opener

#: Messages and answers in each file.
COUNTS = (16, 20)
PAIRS = [
    pytest.param(READER, OURS, id="reader to ours"),
    pytest.param(OURS, READER, id="ours to reader"),
    pytest.param(READER, READER, id="reader to reader"),
    pytest.param(READER, NATIVE, id="reader to native", marks=NEEDS_LIBRARY),
    pytest.param(NATIVE, READER, id="native to reader", marks=NEEDS_LIBRARY),
    pytest.param(NATIVE, OURS, id="native to ours", marks=NEEDS_LIBRARY),
]


@pytest.fixture(scope="module", params=[1, 2], ids=["hybrid", "x25519"])
def suite(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module", params=["kept", "fresh"])
def vectors(request: pytest.FixtureRequest, suite: int) -> Vectors:
    """Those that the repository holds, and others that were made just now."""
    return kept(suite) if request.param == "kept" else read(Maker(suite).document())


def test_the_reader_opens_every_vector(vectors: Vectors) -> None:
    assert checks.opened_by(reader, vectors) == COUNTS


def test_the_reader_finds_what_keys_are_bound_to(vectors: Vectors) -> None:
    infos = 0
    for each in vectors.exchanges:
        for worker in vectors.workers:
            if worker.key_id in each.infos:
                found = reader.wrap_info(each.message, each.token, worker.key_id, worker.variant)
                assert found == each.infos[worker.key_id]
                infos += 1
        for answer in each.answers:
            assert reader.response_key(each.keys[answer.key_id], answer.message.nonce) == answer.response_key
    assert infos == 14


@pytest.mark.parametrize("opener", OPENERS)
def test_our_worker_opens_every_vector_and_the_reader_its_answer(vectors: Vectors, opener: type[Opener] | str) -> None:
    opened = 0
    for each in vectors.exchanges:
        for worker in vectors.workers:
            if worker.key_id in each.keys and each.opening is None:
                far = OurWorker(worker, opener_of(opener))
                for message in [each, *(placed for placed in vectors.exchanges if placed.opening is each)]:
                    got = far.open(message.message, message.token, message.jkt)
                    assert got.plaintext == message.plaintext
                    assert reader.open_answer(message.keys, got.answer(b"\0answer")) == b"\0answer"
                    opened += 1
    assert opened == COUNTS[1]


def test_our_client_opens_every_answer(vectors: Vectors) -> None:
    opened = 0
    for each in vectors.exchanges:
        openers = {key_id: answer_opener(keys.response_secret, keys.bound) for key_id, keys in each.keys.items()}
        if each.opening is not None:
            place, ((key_id, keys),) = each.message.session, each.keys.items()
            ciphers = SessionCiphers(each.opening.keys[key_id].data_key, key_id, place.session_id)
            openers = {key_id: session_answer_opener(ciphers, keys.bound, place.counter)}
        (bound,) = {keys.bound for keys in each.keys.values()}
        for answer in each.answers:
            sent = Sealed(each.message.SerializeToString(), bound, openers)
            assert sent.open(answer.message) == answer.plaintext
            opened += 1
    assert opened == COUNTS[1]


def test_the_openings_of_vectors_are_answered_with_a_session(vectors: Vectors) -> None:
    answers = [each.answers[0] for each in vectors.exchanges if each.id in ("session", "stream")]
    for answer in answers:
        told = pb.SealedSession.FromString(answer.plaintext[1:])
        assert (answer.plaintext[:1], told.lifetime_seconds, told.max_requests) == (b"\0", 600, 10_000)
    assert len(answers) == 2


@pytest.mark.parametrize("size", checks.SIZES)
@pytest.mark.parametrize(("client", "worker"), PAIRS)
def test_requests_by_themselves(client: Party, worker: Party, suite: int, size: int) -> None:
    checks.a_request(client, worker, suite, size)


@pytest.mark.parametrize(("client", "worker"), PAIRS)
def test_sessions(client: Party, worker: Party, suite: int) -> None:
    checks.a_session(client, worker, suite)


@pytest.mark.parametrize(("client", "worker"), PAIRS)
def test_streams(client: Party, worker: Party, suite: int) -> None:
    checks.a_stream(client, worker, suite)


@pytest.mark.parametrize(("client", "worker"), PAIRS)
def test_nothing_that_was_altered_opens(client: Party, worker: Party, suite: int) -> None:
    checks.altered_requests(client, worker, suite)
    checks.altered_session_requests(client, worker, suite)


@pytest.mark.parametrize(("client", "worker"), PAIRS)
def test_no_answer_that_was_altered_opens(client: Party, worker: Party, suite: int) -> None:
    checks.altered_answers(client, worker, suite, ANSWER_CHANGES)
