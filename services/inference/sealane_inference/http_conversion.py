"""Large JSON <-> messages, as a process of its own does it.

Its standard input brings jobs, its standard output takes what came of them.

Python reads JSON without letting another thread run: in the gateway itself one large document would keep every caller
waiting. The process ends with the gateway, whatever becomes of it, because its input ends then.

A frame is the length of its head, the head as JSON with the sizes of the parts, and the parts: there is no pickle in
it, since what comes back was made of what strangers sent.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import BY_KIND, Internal, ResourceExhausted, SealaneError
from sealane.protocols import tfserving
from sealane.protocols.call import ModelDescription, Target
from sealane.protocols.json_values import Json
from sealane.protocols.openinference_json import HEADER_LENGTH
from sealane.rest import openinference_endpoints, tfserving_endpoints
from sealane.rest.table import Ask, Asked, Notes, Question, Reply

#: Address space of the process. The worst JSON that is taken needs a third of it.
MEMORY = 4 << 30
LENGTH = struct.Struct("<I")
_HEAD_BYTES = 1 << 20

ASK: Mapping[str, Ask] = {
    "infer": openinference_endpoints.infer,
    "generate": openinference_endpoints.generate,
    "predict": tfserving_endpoints.predict,
    "classify": tfserving_endpoints.classify,
    "regress": tfserving_endpoints.regress,
}
TELL: Mapping[str, Callable[[Notes, bytes], Reply]] = {
    "infer": openinference_endpoints.tell_infer,
    "generate": openinference_endpoints.tell_generate,
    "predict": tfserving_endpoints.tell_predict,
    "classify": tfserving_endpoints.tell_classify,
    "regress": tfserving_endpoints.tell_regress,
}


@dataclass(frozen=True, slots=True)
class Frame:
    """A job, or what came of it."""

    head: Mapping[str, Json] = field(default_factory=dict)
    parts: Sequence[bytes | memoryview] = ()

    def pieces(self) -> list[bytes | memoryview]:
        """What travels."""
        head = json.dumps({**self.head, "sizes": [len(part) for part in self.parts]}).encode()
        return [LENGTH.pack(len(head)), head, *self.parts]


def question_frame(name: str, question: Question) -> Frame:
    """The job of asking."""
    target, length = question.target, question.headers.get(HEADER_LENGTH)
    head: dict[str, Json] = {
        "ask": name,
        "target": [target.model, target.version, target.label],
        "headers": {} if length is None else {HEADER_LENGTH: length},
    }
    if question.model is None:
        return Frame(head, (question.body,))
    version = next(iter(question.model.versions), "1")
    return Frame(head, (question.body, tfserving.encode_metadata(question.model, version).SerializeToString()))


def answer_frame(name: str, notes: Notes, answer: bytes) -> Frame:
    """The job of telling an answer."""
    return Frame({"tell": name, "notes": dict(notes)}, (answer,))


def asked_of(frame: Frame, tell: Callable[[Notes, bytes], Reply]) -> Asked:
    """What came of asking.

    Raises:
        SealaneError: why the question cannot be asked.
    """
    raise_refusal(frame)
    notes = frame.head["notes"]
    assert isinstance(notes, dict)
    return Asked(bytes(frame.parts[0]), lambda answer: tell(notes, answer), bool(frame.head["light"]), notes)


def reply_of(frame: Frame) -> Reply:
    """What came of telling.

    Raises:
        SealaneError: why the answer cannot be told.
    """
    raise_refusal(frame)
    headers = frame.head["headers"]
    assert isinstance(headers, list)
    told = tuple((str(name), str(value)) for name, value in headers)
    return Reply(tuple(bytes(part) for part in frame.parts), media_type=str(frame.head["media_type"]), headers=told)


def raise_refusal(frame: Frame) -> None:
    """Raise the refusal that a frame holds, if it does."""
    if "refused" not in frame.head:
        return
    kind = BY_KIND.get(str(frame.head["refused"]), Internal)
    raise kind(str(frame.head["message"]), reason=str(frame.head["reason"]), field=str(frame.head["field"]))


def done(job: Frame) -> Frame:
    """Do a job."""
    try:
        return _ask(job) if "ask" in job.head else _tell(job)
    except SealaneError as error:
        return _refused(error)
    except MemoryError:
        return _refused(
            ResourceExhausted("the JSON takes too much memory; send the tensors in binary", reason="JSON_MEMORY")
        )


def _ask(job: Frame) -> Frame:
    model, version, label = _list(job.head["target"])
    headers = job.head["headers"]
    assert isinstance(headers, dict)
    described: ModelDescription | None = None
    if len(job.parts) > 1:
        described = tfserving.decode_metadata(tfs.GetModelMetadataResponse.FromString(bytes(job.parts[1])))
    question = Question(Target(str(model), str(version), str(label)), headers, bytes(job.parts[0]), described)
    asked = ASK[str(job.head["ask"])](question)
    return Frame({"light": asked.light, "notes": dict(asked.notes)}, (asked.message,))


def _tell(job: Frame) -> Frame:
    notes = job.head["notes"]
    assert isinstance(notes, dict)
    reply = TELL[str(job.head["tell"])](notes, bytes(job.parts[0]))
    return Frame({"media_type": reply.media_type, "headers": [list(pair) for pair in reply.headers]}, reply.body)


def _refused(error: SealaneError) -> Frame:
    return Frame(
        {
            "refused": error.kind,
            "message": error.message[: _HEAD_BYTES >> 3],
            "reason": error.reason,
            "field": error.field[: _HEAD_BYTES >> 3],
        }
    )


def sizes_of(head: bytes) -> tuple[Mapping[str, Json], list[int]]:
    """A head, and the sizes of the parts that follow it."""
    told = json.loads(head)
    assert isinstance(told, dict)
    return told, [int(str(size)) for size in _list(told.pop("sizes"))]


def _list(value: Json) -> list[Json]:
    assert isinstance(value, list)
    return value


def _read(source: BinaryIO) -> Frame | None:
    length = source.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    head, sizes = sizes_of(source.read(LENGTH.unpack(length)[0]))
    parts = [source.read(size) for size in sizes]
    return Frame(head, parts) if [len(part) for part in parts] == sizes else None


def main() -> int:
    """Do jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the gateway says when it is over
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (job := _read(source)) is not None:
        try:
            sink.writelines(done(job).pieces())
            sink.flush()
        except BrokenPipeError:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
