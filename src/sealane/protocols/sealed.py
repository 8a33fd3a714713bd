"""Sealed calls as gateways and workers see them: where messages of a stream go, and what is refused unsealed."""

from __future__ import annotations

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols.peek import inner, peek_method
from sealane.protocols.wire import length_delimited

_SERVICE = "/sealane.inference.v1.SealedInferenceService"
INFER, OPEN_SESSION, OPEN_STREAM = (
    f"{_SERVICE}/{name}" for name in ("SealedInfer", "OpenSealedSession", "SealedInferStream")
)
REASON = "SEALED_REQUIRED"
#: Methods that carry a caller's tensors.
RUNS = frozenset(
    {
        "/inference.GRPCInferenceService/ModelInfer",
        *(
            f"/tensorflow.serving.PredictionService/{name}"
            for name in ("Predict", "Classify", "Regress", "MultiInference")
        ),
    }
)


def sealed_required(name: str) -> FailedPrecondition:
    """The refusal, in every protocol and at gateway and worker alike."""
    return FailedPrecondition(
        f"the owner of {name!r} wants requests sealed; call it with sealed=True, or through 'sealane proxy'",
        reason=REASON,
    )


def step_of_stream(body: bytes, *, first: bool) -> tuple[str, bytes]:
    """The call that a message of SealedInferStream is: its method and its request.

    Raises:
        InvalidArgument: a body that is no well-formed message, or a first one that opens no stream.
    """
    if not first:
        return INFER, inner(body)
    if peek_method(inner(body)) != OPEN_STREAM:
        raise InvalidArgument(
            "the first message of a stream holds an envelope with the stream's method, which keeps its order",
            reason="STREAM_OPENING",
            field="request.method",
        )
    # SealedInferStreamRequest and OpenSealedSessionRequest both hold an envelope, in field 1.
    return OPEN_SESSION, body


def answer_of_stream(answer: bytes, *, first: bool) -> bytes:
    """The message of the stream that an answer of that call is."""
    return answer if first else length_delimited(1, len(answer)) + answer
