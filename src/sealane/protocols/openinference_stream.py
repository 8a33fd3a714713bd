"""Answers of ModelStreamInfer, made of the bytes of answers of ModelInfer without parsing them."""

from __future__ import annotations

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.protocols.wire import length_delimited

#: Request metadata that has errors end the stream with their status, as Triton has it.
GRPC_ERRORS = "triton_grpc_error"
#: ModelStreamInferResponse.infer_response.
_ANSWER = 2
#: Every answer here is the last one to its request. Appended to a serialized message, a field is merged into it
#: (https://protobuf.dev/programming-guides/encoding, "Last One Wins").
_FINAL = oip.ModelInferResponse(
    parameters={"triton_final_response": oip.InferParameter(bool_param=True)}
).SerializeToString()


def stream_answer(answer: bytes) -> bytes:
    """The serialized ModelStreamInferResponse of a serialized ModelInferResponse."""
    return b"".join((length_delimited(_ANSWER, len(answer) + len(_FINAL)), answer, _FINAL))


def stream_error(message: str, request_id: str) -> bytes:
    """The serialized ModelStreamInferResponse of an error; it says which request it is about."""
    serialized: bytes = oip.ModelStreamInferResponse(
        error_message=message, infer_response=oip.ModelInferResponse(id=request_id)
    ).SerializeToString()
    return serialized
