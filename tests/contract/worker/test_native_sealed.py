"""What came sealed is answered by the native front as Python answers it, each request once, whichever way it comes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile_box
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from sealane.auth.v1 import sealing_key_service_pb2
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import SealaneError
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import openinference, sealed, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.call import Cancellation, Quota
from sealane.security import statements, suites
from sealane.security.sealed_session import ClientSession
from sealane.security.sealing_policy import SealingPolicy
from sealane.tensors import Array
from sealane_worker.box import BoxLimits
from sealane_worker.model.queueing import Batching
from sealane_worker.spec import ModelSpec, Serving

pytest.importorskip("sealane_native", reason="the native front is not built: make .venv/.native needs cargo")

from native_site import INFER, LIGHT, PREDICT, NativeSite, digits_call, learn, parsed, serving, told, wait
from sealed_callers import KINDS, WAYS, SealedCaller

FLOAT = LIGHT / "litert-float.tflite"
#: Every refusal of an envelope that was altered.
REFUSED = {"CANNOT_OPEN", "STALE_SEALING_KEY", "STALE_SEALED_SESSION", "SENDER_KEY", "MALFORMED"}


@pytest.fixture(scope="module", params=[suites.HYBRID, suites.X25519], ids=["hybrid", "x25519"])
def shared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[NativeSite]:
    with serving(tmp_path_factory.mktemp("sealed"), BoxLimits(load=20), suite=request.param) as site:
        site.load("digits", ModelSpec("litert", FLOAT))
        yield site


@pytest.fixture
def site(shared: NativeSite) -> NativeSite:
    shared.server.forget()
    return shared


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NativeSite]:
    """A model that does what it is told."""
    hostile_box.find_hostile(monkeypatch)
    with serving(tmp_path, BoxLimits(load=20, hang=20, backoff_first=0.02)) as site:
        site.load("hostile", hostile_box.spec_of(tmp_path))
        yield site


def learned(caller: SealedCaller, call: Callable[[], object]) -> None:
    """Have a call answered by Python until it needs none any more."""
    learn(caller.site, caller.deployment, call)


def runs(site: NativeSite, deployment: str = "digits") -> int:
    """Requests that the model has run."""
    return site.statistics(deployment).succeeded


def refused(call: Callable[[], object]) -> SealaneError:
    with pytest.raises(SealaneError) as failed:
        call()
    return failed.value


@pytest.mark.parametrize("rows", [1, 300, 5000])
@pytest.mark.parametrize("protocol", ["infer", "predict"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_of_python(
    site: NativeSite, digits: tuple[Array, Array], way: str, kind: str, protocol: str, rows: int
) -> None:
    """5,000 rows are 1.3 MB: two chunks."""
    image = np.resize(digits[0], (rows, *digits[0].shape[1:]))
    caller = SealedCaller(site, way, kind)
    run = getattr(caller, protocol)
    want = run(digits_call(image))["probabilities"]
    learned(caller, lambda: run(digits_call(image)))
    before = site.native("digits")
    for turned in (image, image[::-1]):
        given = run(digits_call(turned))
        assert given.keys() == {"probabilities"}
        np.testing.assert_array_equal(given["probabilities"], want if turned is image else want[::-1])
    assert site.native("digits") == before + 2


def test_the_whole_answer_is_the_same(site: NativeSite, digits: tuple[Array, Array]) -> None:
    request = openinference.encode_request(digits_call(digits[0][:2]))
    request.id = "an id"
    caller = SealedCaller(site)
    by_python = caller.exchange(caller.seal(request.SerializeToString()))
    learned(caller, lambda: caller.exchange(caller.seal(request.SerializeToString())))
    by_front = caller.exchange(caller.seal(request.SerializeToString()))
    assert parsed(oip.ModelInferResponse(), by_front) == parsed(oip.ModelInferResponse(), by_python)
    assert b"an id" in by_front


def test_what_one_way_has_taught_the_other_knows(site: NativeSite, digits: tuple[Array, Array]) -> None:
    caller = SealedCaller(site)
    learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
    before = site.native("digits")
    caller.way = "lane"
    caller.infer(digits_call(digits[0][:1]))
    assert site.native("digits") == before + 1
    caller.kind = "alone"
    caller.infer(digits_call(digits[0][:1]))
    assert site.native("digits") == before + 1, "whose key signs what is by itself is not known yet"
    caller.infer(digits_call(digits[0][:1]))
    assert site.native("digits") == before + 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("by_python", [False, True], ids=["first by the front", "first by Python"])
def test_a_request_runs_once_whichever_way_it_comes(
    site: NativeSite, digits: tuple[Array, Array], kind: str, first: str, by_python: bool
) -> None:
    caller = SealedCaller(site, first, kind)
    plaintext = openinference.encode_request(digits_call(digits[0][:1])).SerializeToString()
    learned(caller, lambda: caller.exchange(caller.seal(plaintext)))
    sent = caller.seal(plaintext)
    if by_python:
        site.server.forget()
    caller.exchange(sent)
    learned(caller, lambda: caller.exchange(caller.seal(plaintext)))
    before = runs(site)
    for way in WAYS:
        caller.way = way
        assert refused(lambda: caller.exchange(sent)).reason == "CANNOT_OPEN"
    site.server.forget()
    for way in WAYS:
        caller.way = way
        assert refused(lambda: caller.exchange(sent)).reason == "CANNOT_OPEN"
    assert runs(site) == before


@pytest.mark.parametrize("kind", KINDS)
def test_of_copies_that_come_at_once_one_runs(site: NativeSite, digits: tuple[Array, Array], kind: str) -> None:
    caller = SealedCaller(site, kind=kind)
    plaintext = openinference.encode_request(digits_call(digits[0][:1])).SerializeToString()
    learned(caller, lambda: caller.exchange(caller.seal(plaintext)))
    lane = SealedCaller(site, "lane", kind, token=caller.token, key=caller.key)

    def ran(way: SealedCaller, wire: bytes) -> bool:
        try:
            way.send(wire)
        except SealaneError as error:
            assert error.reason == "CANNOT_OPEN"
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        for _ in range(30):
            wire, before = caller.seal(plaintext).wire, runs(site)
            outcomes = list(threads.map(lambda way, wire=wire: ran(way, wire), [caller, lane] * 3))
            assert sum(outcomes) == 1
            assert runs(site) == before + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_that_was_altered_runs(site: NativeSite, digits: tuple[Array, Array], way: str, kind: str) -> None:
    caller, dice = SealedCaller(site, way, kind), random.Random(7)
    plaintext = openinference.encode_request(digits_call(digits[0][:1])).SerializeToString()
    learned(caller, lambda: caller.exchange(caller.seal(plaintext)))
    before, found = runs(site), set[str]()
    for _ in range(300):
        wire = caller.seal(plaintext).wire
        original, altered = pb.SealedInferRequest.FromString(wire), bytearray(wire)
        altered[dice.randrange(len(wire))] ^= 1 << dice.randrange(8)
        try:
            same = pb.SealedInferRequest.FromString(bytes(altered)) == original
        except DecodeError:
            same = False
        if not same:  # else an unknown field, which protobuf drops before anybody looks
            found.add(refused(lambda altered=altered: caller.send(bytes(altered))).reason)
    assert found <= REFUSED and "CANNOT_OPEN" in found
    assert runs(site) == before


def test_a_captured_token_is_of_no_use(site: NativeSite, digits: tuple[Array, Array]) -> None:
    caller = SealedCaller(site, kind="alone")
    learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
    plaintext, before = openinference.encode_request(digits_call(digits[0][:1])).SerializeToString(), runs(site)
    thief = SealedCaller(site, kind="alone")
    token, thief.token = thief.token, caller.token
    assert refused(lambda: thief.exchange(thief.seal(plaintext))).reason == "SENDER_KEY"
    own, mine = thief.seal(plaintext), caller.seal(plaintext)
    thief.token = token
    assert refused(lambda: thief.exchange(mine)).reason == "SENDER_KEY", "an envelope of another, with a good token"
    assert refused(lambda: caller.exchange(own)).reason == "SENDER_KEY"
    caller.kind = "session"
    learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
    thief.kind, thief.session = "session", caller.session
    assert refused(lambda: thief.exchange(thief.seal(plaintext))).reason == "SENDER_KEY"
    assert runs(site) == before + 3


def test_a_session_outlives_its_token(site: NativeSite, digits: tuple[Array, Array]) -> None:
    caller = SealedCaller(site)
    learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
    later = SealedCaller(site, token="refreshed", key=caller.key)
    later.session = caller.session
    learned(later, lambda: later.infer(digits_call(digits[0][:1])))
    sent = later.seal(openinference.encode_request(digits_call(digits[0][:1])).SerializeToString())
    assert refused(lambda: caller.exchange(sent)).reason == "CANNOT_OPEN", "it is bound to the token that it goes with"
    del site.tokens.known[later.token]
    site.server.forget()  # as a revocation does
    assert refused(lambda: later.infer(digits_call(digits[0][:1]))).kind == "UNAUTHENTICATED"


@pytest.mark.parametrize("way", WAYS)
def test_a_session_that_ended_is_over(site: NativeSite, digits: tuple[Array, Array], way: str) -> None:
    caller = SealedCaller(site, way)
    learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
    used = site.express.opener._sessions._kept[caller.seal(b"").request.session.session_id]
    assert used.numbers.used > used.found, "what goes past Python is a use as well"
    caller.way, wire = "direct", caller.seal(b"", end=True).wire
    caller.send(wire)
    caller.way = way
    sent = caller.seal(openinference.encode_request(digits_call(digits[0][:1])).SerializeToString())
    assert refused(lambda: caller.exchange(sent)).reason == "STALE_SEALED_SESSION"


@pytest.mark.parametrize("way", WAYS)
def test_another_version_opens_only_what_is_sealed_to_it(tmp_path: Path, digits: tuple[Array, Array], way: str) -> None:
    with serving(tmp_path, BoxLimits(load=20)) as site:
        site.load("digits", ModelSpec("litert", FLOAT))
        caller = SealedCaller(site, way)
        learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
        site.load("digits", ModelSpec("litert", LIGHT / "litert-int8.tflite"), version=2, epoch=2)
        assert refused(lambda: caller.infer(digits_call(digits[0][:1]))).reason == "CANNOT_OPEN"
        caller.version, caller.session = 2, None
        learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_what_goes_wrong_is_said_inside_the_seal(
    hostile: NativeSite, caplog: pytest.LogCaptureFixture, way: str, kind: str
) -> None:
    caller = SealedCaller(hostile, way, kind, "hostile")
    by_python = refused(lambda: caller.predict(told("complain"), x_request_id="request-7"))
    learned(caller, lambda: caller.predict(told("echo x")))
    failed = hostile.statistics("hostile").failed
    with caplog.at_level("INFO"):
        by_front = refused(lambda: caller.predict(told("complain"), x_request_id="request-7"))
    assert hostile.statistics("hostile").failed == failed + 1
    assert (by_front.kind, by_front.reason, by_front.message) == (by_python.kind, by_python.reason, by_python.message)
    assert by_front.metadata == by_python.metadata
    assert "complain" not in caplog.text
    late = refused(lambda: caller.predict(told("sleep 1"), timeout=0.3))
    assert late.kind == "DEADLINE_EXCEEDED"
    crashed = refused(lambda: caller.predict(told("die")))
    assert (crashed.kind, crashed.reason) == ("UNAVAILABLE", "MODEL_CRASHED")
    assert hostile.express.places.in_flight == 0


def test_a_gateway_that_drops_a_call_ends_it(hostile: NativeSite) -> None:
    caller = SealedCaller(hostile, "lane", deployment="hostile")
    learned(caller, lambda: caller.predict(told("echo x")))
    for begun in (False, True):
        caller.cancellation = Cancellation()
        if not begun:
            caller.cancellation.cancel()
        threading.Timer(0.2, caller.cancellation.cancel).start()
        before = time.monotonic()
        assert refused(lambda: caller.predict(told("sleep 1.5"))).kind == "CANCELLED"
        assert time.monotonic() - before < 1.2
    assert hostile.express.places.in_flight == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_finds_no_place_uses_nothing_up(hostile: NativeSite, kind: str) -> None:
    caller = SealedCaller(hostile, "direct", kind, "hostile")
    learned(caller, lambda: caller.predict(told("echo x")))
    slow = [caller.seal(tfserving.encode_request(told("sleep 0.6")).SerializeToString(), PREDICT) for _ in range(44)]
    method = caller.channel.unary_unary(sealed.INFER)
    metadata = (("authorization", f"DPoP {caller.token}"),)
    sent = [method.future(item.wire, timeout=60, metadata=metadata) for item in slow]
    wait(lambda: hostile.express.places.in_flight == 44)
    last = caller.seal(tfserving.encode_request(told("echo last")).SerializeToString(), PREDICT)
    assert refused(lambda: caller.exchange(last)).reason == "FAIR_SHARE"
    for future in sent:
        future.cancel()
    wait(lambda: hostile.express.places.in_flight == 0)
    assert b"done last" in caller.exchange(last), "it was not looked at, and may come again"


@pytest.mark.parametrize("kind", KINDS)
def test_large_ones_that_find_no_room_are_given_back_and_run_in_python_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The front's part of the ring takes 17 of them, while the first ones sleep."""
    hostile_box.find_hostile(monkeypatch)
    with serving(tmp_path, BoxLimits(load=20, hang=20)) as site:
        site.load("hostile", hostile_box.spec_of(tmp_path, Batching(max_queue_bytes=256 << 20)))
        find_no_room(site, kind)


def find_no_room(hostile: NativeSite, kind: str) -> None:
    code = np.zeros((60_000, 64), np.uint8)
    code[0, :9] = np.frombuffer(b"sleep 0.2", np.uint8)
    plaintext = tfserving.encode_request(InferenceCall(Target("hostile", signature="code"), {"code": code}))
    first = SealedCaller(hostile, "direct", kind, "hostile")
    callers = [SealedCaller(hostile, WAYS[n % 2], kind, "hostile", token=first.token, key=first.key) for n in range(24)]
    for caller in callers:
        caller.session = first.session or first.open_session()
    learned(first, lambda: first.exchange(first.seal(plaintext.SerializeToString(), PREDICT), timeout=60.0))
    ran, native = runs(hostile, "hostile"), hostile.native("hostile")
    sent = [caller.seal(plaintext.SerializeToString(), PREDICT) for caller in callers]
    with ThreadPoolExecutor(len(callers)) as threads:
        answers = threads.map(lambda pair: pair[0].exchange(pair[1], timeout=60.0), zip(callers, sent, strict=True))
        assert all(b"done" in answer for answer in answers)
    assert runs(hostile, "hostile") == ran + len(callers)
    assert 0 < hostile.native("hostile") - native < len(callers), "some found no room"
    for caller, each in zip(callers, sent, strict=True):
        assert refused(lambda caller=caller, each=each: caller.exchange(each)).reason == "CANNOT_OPEN"
    assert runs(hostile, "hostile") == ran + len(callers)


@pytest.mark.parametrize("way", WAYS)
def test_one_whose_process_is_closed_under_it_does_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """It may have run: whoever sealed it hears so, and a copy of it is of no use to anybody."""
    hostile_box.find_hostile(monkeypatch)
    with serving(tmp_path, BoxLimits(load=20, hang=20, drain=0.2)) as site:
        site.load("hostile", hostile_box.spec_of(tmp_path))
        caller = SealedCaller(site, way, deployment="hostile")
        learned(caller, lambda: caller.predict(told("echo x")))
        slow = caller.seal(tfserving.encode_request(told("sleep 3")).SerializeToString(), PREDICT)
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(lambda: refused(lambda: caller.exchange(slow)))
            pooled = site.engine._loaded["projects/p/deployments/hostile"].pooled
            wait(lambda: pooled.box is not None and pooled.box.in_flight == 1)
            pooled.give_way()
            told_ = running.result()
        assert (told_.kind, told_.reason) == ("UNAVAILABLE", "MODEL_CLOSED")
        assert caller.predict(told("echo back"))["said"].tolist() == [b"done back"]
        assert refused(lambda: caller.exchange(slow)).reason == "CANNOT_OPEN"


def test_what_python_must_look_at_it_looks_at(site: NativeSite, digits: tuple[Array, Array]) -> None:
    quota = (Quota(requests_per_second=1e6), Quota())
    for facts in ({"quota": quota}, {"certificate_thumbprint": "certificate"}):
        for way in WAYS:
            caller, before = SealedCaller(site, way, facts=dict(facts)), site.native("digits")
            for _ in range(4):
                caller.infer(digits_call(digits[0][:1]))
            assert site.native("digits") == before
    caller = SealedCaller(site)
    learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
    before = site.native("digits")
    caller.infer(digits_call(digits[0][:1]), traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    caller.infer(digits_call(digits[0][:1]), x_other="1")
    assert site.native("digits") == before
    assert {"seal", "open"} <= {span.name.rpartition(".")[2] for span in site.spans.get_finished_spans()}


def test_texts_are_pythons(hostile: NativeSite) -> None:
    words = InferenceCall(Target("hostile"), {"do": np.array([b"echo x"], np.object_)})
    for way in WAYS:
        caller = SealedCaller(hostile, way, deployment="hostile")
        for _ in range(4):
            assert caller.infer(words)["said"].tolist() == [b"done x"]
    assert hostile.native("hostile") == 0


def test_streams_are_pythons(site: NativeSite, digits: tuple[Array, Array]) -> None:
    """They keep an order, which the front knows nothing of."""
    caller = SealedCaller(site)
    learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
    plaintext, before = openinference.encode_request(digits_call(digits[0][:1])).SerializeToString(), runs(site)
    native = site.native("digits")
    stream = ClientSession(caller.bound(sealed.OPEN_STREAM), caller.target(), caller.key)
    now = int(time.time() * 1000)
    sent = [stream.seal(plaintext, INFER, caller.token, now) for _ in range(3)]

    def messages() -> Iterator[bytes]:
        for request in (stream.opening.request, sent[0].request, sent[2].request):
            yield pb.SealedInferStreamRequest(request=request).SerializeToString()

    method = caller.channel.stream_stream("/sealane.inference.v1.SealedInferenceService/SealedInferStream")
    answers = method(messages(), timeout=10, metadata=(("authorization", f"DPoP {caller.token}"),))
    assert next(answers) and next(answers)
    with pytest.raises(Exception, match="cannot open sealed payload"):
        next(answers)
    assert (runs(site), site.native("digits")) == (before + 1, native)


def test_owners_that_demand_a_seal_get_one(
    tmp_path: Path, digits: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, BoxLimits(load=20)) as site:
        stated = Auth(site, monkeypatch).state
        demanded = Serving(sealing=SealingPolicy(required=True, regions=("eu",)))
        site.load("digits", ModelSpec("litert", FLOAT, serving=demanded))
        caller = SealedCaller(site)
        assert refused(lambda: caller.infer(digits_call(digits[0][:1]))).reason == "SEALING_POLICY"
        stated("eu")
        learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
        stated("us")
        assert refused(lambda: caller.infer(digits_call(digits[0][:1]))).reason == "SEALING_POLICY", "at once"
        stated("eu", seconds=1.0)
        learned(caller, lambda: caller.infer(digits_call(digits[0][:1])))
        wait(lambda: site.sealing.ends < time.time())
        assert refused(lambda: caller.infer(digits_call(digits[0][:1]))).reason == "SEALING_POLICY", "it has ended"


class Auth:
    """Says where the worker stands."""

    def __init__(self, site: NativeSite, monkeypatch: pytest.MonkeyPatch) -> None:
        self._key, self._sealing = Ed25519PrivateKey.generate(), site.sealing
        self._answer = sealing_key_service_pb2.SealingStatement()
        monkeypatch.setattr("sealane_worker.sealing.SealingKeyServiceStub", lambda _: self)

    def PublishSealingKey(
        self, request: sealing_key_service_pb2.PublishSealingKeyRequest, timeout: float
    ) -> sealing_key_service_pb2.SealingStatement:
        return self._answer

    def state(self, region: str, seconds: float = 600.0) -> None:
        """Have the worker publish its key, and say that it is there, for so long."""
        pair, attributes, now = self._sealing.pair, {"region": region}, time.time()
        self._answer.jws = statements.issue(
            node="cloud-1", suite=pair.suite, public_key=pair.public_key, attributes=attributes, key=self._key, now=now
        )
        self._answer.expire_time.FromNanoseconds(int((now + seconds) * 1e9))
        self._sealing.publish()
