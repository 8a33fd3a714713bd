"""Overload in the words of each protocol: the same refusal, with the code that its clients wait for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sealane.compat.openinference.v2 import openinference_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.errors import InvalidArgument, ResourceExhausted, SealaneError
from sealane.rpc.policy import Method, methods_of
from sealane.rpc.status import from_code
from sealane.rpc.transport import call_of, code_of, outward, trailers_of

PREDICT = next(
    iter(
        methods_of(
            tfserving_pb2.DESCRIPTOR.services_by_name["PredictionService"], "tensorflow.serving.PredictionService"
        )
    )
)
INFER = next(
    iter(
        methods_of(
            openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"], "inference.GRPCInferenceService"
        )
    )
)
BUSY = ResourceExhausted("too much waits", reason="QUEUE_WAIT", retry_after=0.25, node="w")


@pytest.mark.parametrize(
    ("method", "error", "kind"),
    [
        (PREDICT, BUSY, "UNAVAILABLE"),
        (INFER, BUSY, "RESOURCE_EXHAUSTED"),
        (PREDICT, ResourceExhausted("your quota", reason="QUOTA_EXCEEDED", retry_after=1.0), "RESOURCE_EXHAUSTED"),
        (PREDICT, InvalidArgument("bad"), "INVALID_ARGUMENT"),
    ],
)
def test_the_code_is_that_of_the_protocol_and_the_rest_is_kept(method: Method, error: SealaneError, kind: str) -> None:
    told = outward(error, method.path)
    trailers = dict(trailers_of(told, "r"))
    details = trailers["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    assert code_of(told).name == kind
    back = from_code(code_of(told), told.message, details)
    assert (back.kind, back.reason, back.message) == (kind, error.reason, error.message)
    assert back.retry_after == error.retry_after
    if error.retry_after:
        assert trailers["grpc-retry-pushback-ms"] == str(int(error.retry_after * 1000))


def test_facts_of_the_refusal_reach_every_client() -> None:
    assert outward(BUSY, PREDICT.path).metadata == {"node": "w"}


@dataclass
class Context:
    """A servicer's context whose caller has gone, or has not."""

    gone: bool

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def time_remaining(self) -> None:
        return None

    def add_callback(self, callback: object) -> bool:
        return not self.gone


def test_a_call_tells_who_waits_for_it_that_its_caller_has_gone() -> None:
    told: list[str] = []
    call_of(INFER, Context(gone=False), b"").on_cancel(lambda: told.append("here"))
    assert told == []
    call_of(INFER, Context(gone=True), b"").on_cancel(lambda: told.append("gone"))
    assert told == ["gone"]
