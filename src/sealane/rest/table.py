"""What the HTTP face serves, as one table: the application routes by it, and the OpenAPI document is made of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sealane.protocols.call import ModelDescription, Target
from sealane.protocols.json_values import Json

JSON = "application/json"
BINARY = "application/octet-stream"
EVENTS = "text/event-stream; charset=utf-8"

#: What has to be kept of a question until its answer is told.
Notes = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Question:
    """What a request says: the model of its path, its headers, its body without compression.

    `model` is set for those endpoints that ask for it.
    """

    target: Target
    headers: Mapping[str, str]
    body: bytes = b""
    model: ModelDescription | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; its body is sent piece by piece, so that nothing is copied together."""

    body: tuple[bytes, ...] = ()
    status: int = 200
    media_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """The serialized request of the method, and how its answer is told.

    `light` answers are told in no time, whatever their size; others may be told elsewhere, where `notes` are all that
    is known of the question.
    """

    message: bytes
    tell: Callable[[bytes], Reply]
    light: bool = False
    notes: Notes = field(default_factory=dict)


class Ask(Protocol):
    """Makes the method's request of a question."""

    def __call__(self, question: Question) -> Asked:
        """The request.

        Raises:
            InvalidArgument: the question can never be answered.
        """
        ...


def _never(question: Question) -> bool:
    return False


def _whole(question: Question) -> int:
    return len(question.body)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One HTTP method and path, and the gRPC method that it means.

    Args:
        verb: the HTTP method.
        path: template with names in braces.
        method: path of the gRPC method.
        ask: makes its request.
        summary: one line for the OpenAPI document.
        needs_model: whether a question can be asked only with the model's signatures at hand.
        weigh: bytes of JSON in the body.
        streams: whether the answers come as server-sent events.
    """

    verb: str
    path: str
    method: str
    ask: Ask
    summary: str
    needs_model: Callable[[Question], bool] = _never
    weigh: Callable[[Question], int] = _whole
    streams: bool = False

    @property
    def tfserving(self) -> bool:
        """Whether it speaks TensorFlow Serving's form."""
        return self.path.startswith("/v1/")


@dataclass(frozen=True, slots=True)
class Found:
    """An endpoint and the values of the names in its path; without an endpoint, the verbs that the path has."""

    endpoint: Endpoint | None
    values: Mapping[str, str] = field(default_factory=dict)
    verbs: tuple[str, ...] = ()


class Table:
    """Finds endpoints; those that stand first are found first and fastest."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self._paths: dict[str, tuple[re.Pattern[str], dict[str, Endpoint]]] = {}
        for endpoint in endpoints:
            _, verbs = self._paths.setdefault(endpoint.path, (_pattern(endpoint.path), {}))
            verbs[endpoint.verb] = endpoint

    def find(self, verb: str, path: str) -> Found:
        """The endpoint of a request; HEAD is a GET whose body is not sent."""
        known: list[str] = []
        for pattern, verbs in self._paths.values():
            match = pattern.fullmatch(path)
            if match is None:
                continue
            endpoint = verbs.get("GET" if verb == "HEAD" else verb)
            if endpoint is not None:
                return Found(endpoint, match.groupdict())
            known += verbs
        return Found(None, {}, tuple(known))


def target_of(values: Mapping[str, str]) -> Target:
    """The model that a path names."""
    return Target(values.get("model", ""), values.get("version", ""), values.get("label", ""))


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", path)
    # A model's name holds no colon: one parts it from the verb of TensorFlow Serving.
    texts = [re.escape(part) if index % 2 == 0 else f"(?P<{part}>[^/:]+)" for index, part in enumerate(parts)]
    return re.compile("".join(texts))
