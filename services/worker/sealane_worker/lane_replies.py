"""What a worker says on a lane about a call: its answer, piece by piece, or why there is none."""

from __future__ import annotations

import time

from sealane.errors import InvalidArgument, ResourceExhausted, SealaneError, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.rpc.call import Call
from sealane.rpc.lane import MAX_PAYLOAD_BYTES, Piece
from sealane.rpc.status import CODE_OF, to_status


def failed(frame: pb.CallFrame, error: SealaneError) -> pb.ReplyFrame:
    """The answer to a call that failed."""
    return pb.ReplyFrame(
        call_id=frame.call_id,
        code=CODE_OF[error.kind].value[0],
        message=error.message,
        status_details=to_status(error, frame.metadata.get("x-request-id", "")).SerializeToString(),
    )


def tell(reply: pb.ReplyFrame, call: Call) -> None:
    """Say how busy the model is that a call was for, where it came as far as one."""
    load = call.load
    if load is not None:
        told = reply.load
        told.calls, told.queue_us, told.service_us = load.calls, int(load.queue * 1e6), int(load.service * 1e6)
        told.spent_us = int((time.monotonic() - call.started) * 1e6)


def fill(frame: pb.WorkerFrame, piece: Piece[pb.ReplyFrame]) -> None:
    """Say a piece of an answer; in place, because every copy of a frame is a copy of its payload."""
    parcel = piece.parcel
    if parcel.lost:
        error = _dropped()
        frame.reply.call_id, frame.reply.code = parcel.call_id, CODE_OF[error.kind].value[0]
        frame.reply.message, frame.reply.status_details = error.message, to_status(error).SerializeToString()
        return
    if piece.start:
        frame.data.call_id, frame.data.data = parcel.call_id, piece.data
        return
    frame.reply.CopyFrom(parcel.item)
    frame.reply.payload = piece.data
    if piece.end < parcel.size:
        frame.reply.size = parcel.size


def full() -> ResourceExhausted:
    """Of a call that came while more answers wait than there is room for."""
    return ResourceExhausted(
        "this worker has more answers to send than the lane takes; retry in a moment",
        reason="LANE_FULL",
        retry_after=0.05,
    )


def _dropped() -> Unavailable:
    return Unavailable("the answer was dropped while the lane was away; retry", reason="LANE_LOST", retry_after=0.05)


def too_large(size: int) -> InvalidArgument:
    """Of an answer that no gateway would take."""
    return InvalidArgument(
        f"the answer takes {size} bytes, the limit is {MAX_PAYLOAD_BYTES}; send fewer rows a call",
        reason="ANSWER_TOO_LARGE",
    )
