"""Sealed inference on a worker: open, run, seal. The gateway that carried the envelope learns nothing."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from sealane import telemetry
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import sealed
from sealane.rpc.call import Call
from sealane.rpc.dispatch import Dispatcher, carried
from sealane.rpc.loads import Load
from sealane.rpc.status import to_status, translate
from sealane.security import sealed_session
from sealane.security.envelope import ANSWER, STATUS
from sealane.security.opener import Opened, Opener
from sealane.telemetry import Telemetry
from sealane_worker.deployment import Model
from sealane_worker.front import infer
from sealane_worker.front_tfserving import PredictionServicer
from sealane_worker.introduction import Introduction
from sealane_worker.preparation import check_sealing
from sealane_worker.serving import BoundServing, Serving

if TYPE_CHECKING:
    import sealane_native

#: Gives a call to the native front; see :meth:`sealane_worker.express.Express.carried`.
Carry: TypeAlias = "Callable[[Call], sealane_native.Carried | None]"

log = logging.getLogger("sealane.worker.sealed")

#: A stream's first message, which shows the sender's key, comes within this time.
OPENING_SECONDS = 10.0
#: Half of the places that a worker has for streams.
STREAMS_OF_CALLER = 16
_PREDICTION = "/tensorflow.serving.PredictionService/"
#: Paths whose bodies are not parsed before the servicer has them.
RAW = frozenset({sealed.INFER})
M = TypeVar("M", bound=Message)


class _Shares:
    """Streams of each caller: one must not hold all of a worker's places."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: Counter[str] = Counter()

    @contextlib.contextmanager
    def place(self, subject: str) -> Iterator[None]:
        """Hold one of a caller's places.

        Raises:
            ResourceExhausted: he has as many as he may have (OVERLOAD).
        """
        with self._lock:
            if self._streams[subject] >= STREAMS_OF_CALLER:
                raise ResourceExhausted(
                    f"you have {STREAMS_OF_CALLER} sealed streams to this worker; end one, or go through the gateway",
                    reason="OVERLOAD",
                    retry_after=0.5,
                )
            self._streams[subject] += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams[subject] -= 1
                self._streams += Counter()  # drops what has come to nothing


@dataclass(frozen=True, slots=True)
class _Bound:
    """The deployment of an envelope, what runs when it is called, and its digest; none where it serves nothing here."""

    model: Model | None = None
    variants: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""


class SealedServicer:
    """``sealane.inference.v1.SealedInferenceService``."""

    def __init__(
        self,
        serving: Serving,
        opener: Opener,
        introduction: Introduction,
        telemetry_: Telemetry,
        carried: Carry | None = None,
    ) -> None:
        self._carried = carried
        self._serving = serving
        self._opener = opener
        self._introduction = introduction
        self._telemetry = telemetry_
        self._dispatcher: Dispatcher | None = None
        self._shares = _Shares()

    def attach(self, dispatcher: Dispatcher) -> None:
        """Say what serves the messages of streams; it serves the streams too, so it is there later."""
        self._dispatcher = dispatcher

    def GetSealingContext(self, request: pb.GetSealingContextRequest, call: Call) -> pb.SealingContext:
        """This worker as the one candidate, for callers that came directly."""
        model = self._serving.resolve(call, request.model)
        version = str(model.assignment.version) if model is not None else ""
        if model is None or request.label or request.version not in ("", version):
            raise NotFound(
                f"deployment {request.model!r} is not served here; ask the gateway", reason="DEPLOYMENT_NOT_SERVED"
            )
        return pb.SealingContext(
            deployment=model.assignment.deployment,
            model_version=f"{model.assignment.model}/versions/{version}",
            candidates=[self._introduction.candidate(self._serving.digest(model), self._serving.policies(model))],
        )

    def SealedInfer(self, request: None, call: Call) -> bytes:
        """One sealed inference; what goes wrong after opening is sealed too."""
        known = self._carried(call) if self._carried is not None else None
        if known is not None:
            answer = self._repeated(known, call)
            if answer is not None:
                return answer
            call.ticket = known.ticket  # as long as `known` is there
        return self._decided(call)

    def _repeated(self, known: sealane_native.Carried, call: Call) -> bytes | None:
        """The answer to a call that the native front has heard before."""
        call.on_cancel(known.leave)
        answered = known.answer(call.body or b"", call.deadline, call.request_id)
        if answered is None:
            return None
        answer, load = answered
        call.load = Load(*load)
        return answer

    def _decided(self, call: Call) -> bytes:
        found = _Bound()

        def variant_of(deployment: str) -> str:
            nonlocal found
            found = self._bound_to(deployment, call)
            return found.digest

        with self._telemetry.span(telemetry.SPAN_OPEN):
            opened = self._opener.open_body(call.body or b"", call.caller, variant_of)
        assert found.model is not None  # an envelope for a deployment that is not served never opens
        serving = BoundServing(self._serving, found.model, found.variants, opened)
        plaintext = ANSWER if opened.end else self._run(opened, serving, call)
        with self._telemetry.span(telemetry.SPAN_SEAL):
            return opened.answer(plaintext)

    def OpenSealedSession(self, request: pb.OpenSealedSessionRequest, call: Call) -> pb.OpenSealedSessionResponse:
        """Keep a session from now on."""
        found = self._bound_to(request.envelope.deployment, call)
        opened = self._opener.open_session(request.envelope, call.caller, found.digest)
        told = pb.SealedSession(
            lifetime_seconds=int(sealed_session.LIFETIME_SECONDS), max_requests=sealed_session.MAX_REQUESTS
        )
        return pb.OpenSealedSessionResponse(answer=opened.seal(ANSWER + told.SerializeToString()))

    def SealedInferStream(self, bodies: Iterator[bytes], call: Call) -> Iterator[bytes]:
        """Each message of the stream is a call of its own; they run one after the other."""
        if self._dispatcher is None:
            raise Unavailable("not ready; try again in a moment")
        session_id = b""
        # Until it has shown its key a token alone holds a place.
        patience = threading.Timer(OPENING_SECONDS, call.cancel or (lambda: None))
        with self._shares.place(call.caller.subject):
            patience.start()
            try:
                for body in bodies:
                    patience.cancel()
                    first = not session_id
                    path, request = sealed.step_of_stream(body, first=first)
                    route = self._dispatcher.route(path)
                    answer = self._dispatcher.unary(route, carried(call, route.method, request))
                    if first:  # it opened, so it is this caller's
                        session_id = pb.OpenSealedSessionRequest.FromString(request).envelope.request_id
                    yield sealed.answer_of_stream(answer, first=first)
            finally:
                patience.cancel()
                self._opener.end_session(session_id)

    def _bound_to(self, deployment: str, call: Call) -> _Bound:
        """What an envelope's deployment serves here.

        Raises:
            FailedPrecondition: its owner forbids this worker to open what is sealed to it (SEALING_POLICY).
        """
        model = self._serving.by_deployment(call, deployment)
        if model is None:
            return _Bound()
        # By the statement of this moment: the model may be here since another one.
        check_sealing(self._serving.policies(model), self._introduction.sealing.facts)
        variants = self._serving.variants(model)
        return _Bound(model, variants, self._serving.digest(model, variants))

    def _run(self, opened: Opened, serving: BoundServing, call: Call) -> bytes:
        try:
            return ANSWER + self._infer(opened, serving, call)
        except Exception as error:  # the translator of what is said inside the seal
            return STATUS + told_inside(error, call.request_id)

    def _infer(self, opened: Opened, serving: BoundServing, call: Call) -> bytes:
        if not opened.method.startswith(_PREDICTION):
            return infer(serving, _parse(oip.ModelInferRequest(), opened.plaintext), call).SerializeToString()
        prediction = PredictionServicer(serving)
        answer: Message
        match opened.method.removeprefix(_PREDICTION):
            case "Predict":
                answer = prediction.Predict(_parse(tfs.PredictRequest(), opened.plaintext), call)
            case "Classify":
                answer = prediction.Classify(_parse(tfs.ClassificationRequest(), opened.plaintext), call)
            case "Regress":
                answer = prediction.Regress(_parse(tfs.RegressionRequest(), opened.plaintext), call)
            case _:
                answer = prediction.MultiInference(_parse(tfs.MultiInferenceRequest(), opened.plaintext), call)
        return answer.SerializeToString()


def told_inside(error: Exception, request_id: str) -> bytes:
    """What is said of a failure inside the seal: a serialized ``google.rpc.Status``."""
    told = translate(error, request_id)
    if told.kind == "INTERNAL":
        # Not its text and not its frames: they may hold what was sealed.
        log.error("unexpected failure in a sealed call", extra={"kind": type(error).__name__, "id": request_id})
    status: bytes = to_status(told, request_id).SerializeToString()
    return status


def _parse(message: M, content: bytes | bytearray) -> M:
    try:
        message.ParseFromString(cast(bytes, content))  # it takes any buffer
    except DecodeError:
        raise InvalidArgument(
            f"the sealed payload is no {message.DESCRIPTOR.name}; generate it with a protobuf library",
            reason="MALFORMED",
        ) from None
    return message
