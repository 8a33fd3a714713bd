"""Requests that belong together: what a model keeps from one to the next, and what it is told of their order.

A model with sequences says in its manifest which of its inputs are filled here: controls (whether this request begins
or ends a sequence, its id) and states (the output that the request before gave). Callers neither send nor get them.
The names and rules are those of Triton's sequence batching with implicit state.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sealane.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, SealaneError
from sealane.protocols.call import SequencePlace
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec
from sealane_worker.sequence_room import SequenceRoom, owned, size_of
from sealane_worker.spec import Ran, Sequencing

MAX_IDLE_SECONDS = 60.0
START, READY, END, CORRID = "START", "READY", "END", "CORRID"
KINDS = (START, READY, END, CORRID)

#: Runs the model with these inputs and these outputs wanted; all where there are none.
RunModel = Callable[[Mapping[str, Array], tuple[str, ...]], Ran]
#: Who asks, and which sequence: the same id of another caller is another sequence.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        caller: whose sequence it is.
        place: sequence, and whether the request begins or ends it.
        deadline: ``time.monotonic()`` value.
        inputs: tensors by name.
        outputs: names wanted; empty for all.
    """

    caller: str
    place: SequencePlace | None
    deadline: float
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ()


@dataclass(slots=True)
class _Live:
    used: float
    states: dict[str, Array] = field(default_factory=dict)
    size: int = 0
    over: bool = False
    """It ended, or its beginning failed: who has waited for it looks again."""
    turn: threading.Lock = field(default_factory=threading.Lock)


class Places:
    """Of the sequences of one model: their room, and the lock that guards it and their tables."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.room = SequenceRoom()


class Sequences:
    """The live sequences of one signature of one model. Every method may be called from any thread.

    Args:
        policy: what the manifest says.
        signature: of the model itself, with what is filled here.
        places: of the sequences of all signatures of the model; its own where there are none.

    Raises:
        FailedPrecondition: the manifest names tensors that the model does not have.
    """

    def __init__(self, policy: Sequencing, signature: Signature, places: Places | None = None) -> None:
        inputs = {spec.name: spec for spec in signature.inputs}
        outputs = {spec.name: spec for spec in signature.outputs}
        missing = [name for name in (*policy.controls, *policy.states) if name not in inputs]
        missing += [name for name in policy.states.values() if name not in outputs]
        if missing:
            raise FailedPrecondition(
                f"sequence_batching names tensors that signature {signature.name!r} does not have: "
                f"{', '.join(sorted(missing))}; correct the manifest",
                reason="MANIFEST_INVALID",
            )
        self.signature = replace(
            signature,
            inputs=tuple(inputs[name] for name in inputs if name not in policy.controls and name not in policy.states),
            outputs=tuple(outputs[name] for name in outputs if name not in policy.states.values()),
        )
        """What callers send and get."""
        self._policy = policy
        self._inputs = inputs
        self._live: OrderedDict[Key, _Live] = OrderedDict()
        places = places or Places()
        self._lock, self._room = places.lock, places.room

    def __len__(self) -> int:
        return len(self._live)

    def run(self, asked: Asked, run: RunModel) -> Ran:
        """Run one request of a sequence after those before it.

        Raises:
            InvalidArgument: no sequence is named, or one that was not begun or is over.
            ResourceExhausted: too many sequences are live, or keep too much.
            DeadlineExceeded: the requests before it did not end in time.
            SealaneError: what the model answers; the sequence is then as before this request, and not begun where
                this request should have begun it.
        """
        place = asked.place
        if place is None:
            raise InvalidArgument(
                "inference request to a model with sequences must specify a non-zero or non-empty correlation ID; "
                "set sequence_id",
                reason="SEQUENCE_MISSING",
                field="parameters[sequence_id]",
            )
        key = (asked.caller, place.id)
        live = self._take_turn(key, place, asked.deadline)
        goes_on = False
        try:
            ran = self._run(live, place, asked, run)
            goes_on = not place.end
            return ran
        except SealaneError:
            goes_on = not place.start
            raise
        finally:
            if not goes_on:
                self._end(key, live)
            live.turn.release()

    def _take_turn(self, key: Key, place: SequencePlace, deadline: float) -> _Live:
        """The sequence, after the requests before this one; it may have ended with one of them."""
        while True:
            live = self._find(key, place)
            if not live.turn.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
                raise DeadlineExceeded("the requests of the sequence before this one did not end in time")
            if not live.over:
                return live
            live.turn.release()

    def _run(self, live: _Live, place: SequencePlace, asked: Asked, run: RunModel) -> Ran:
        inputs, wanted = asked.inputs, asked.outputs
        rows = next((array.shape[0] for array in inputs.values() if array.ndim), 1)
        states: Mapping[str, Array] = {} if place.start else live.states
        filled = {name: self._control(self._inputs[name], kind, place) for name, kind in self._policy.controls.items()}
        for name in self._policy.states:
            filled[name] = states[name] if name in states else _zeros(self._inputs[name], rows)
        kept = self._policy.states.values()
        ran = run({**inputs, **filled}, (*wanted, *(name for name in kept if name not in wanted)) if wanted else ())
        if not place.end:
            self._keep(live, asked.caller, {key: ran.outputs[name] for key, name in self._policy.states.items()})
        live.used = time.monotonic()
        return replace(ran, outputs={name: array for name, array in ran.outputs.items() if name not in kept})

    def _keep(self, live: _Live, caller: str, states: Mapping[str, Array]) -> None:
        kept = {name: owned(array) for name, array in states.items()}
        size = size_of(kept.values())
        with self._lock:
            if not live.over:
                self._room.grow(caller, size - live.size)
                live.states, live.size = kept, size

    def _end(self, key: Key, live: _Live) -> None:
        with self._lock:
            if not live.over:
                self._drop(key, live)

    def _drop(self, key: Key, live: _Live) -> None:
        live.over = True
        del self._live[key]
        self._room.leave(key[0], live.size)

    def _find(self, key: Key, place: SequencePlace) -> _Live:
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            live = self._live.get(key)
            if live is None:
                if not place.start:
                    raise InvalidArgument(
                        f"inference request for sequence {place.id} must specify the START flag on the first request "
                        "of the sequence; it was not begun, or was idle for too long",
                        reason="SEQUENCE_NOT_STARTED",
                        field="parameters[sequence_start]",
                    )
                self._room.enter(key[0])
                live = self._live[key] = _Live(now)
            live.used = now
            self._live.move_to_end(key)
            return live

    def _forget(self, now: float) -> None:
        """Drop those that were idle for too long; the one used longest ago stands first."""
        idle = []
        for key, live in self._live.items():
            if now - live.used < self._policy.max_idle_seconds:
                break
            if not live.turn.locked():
                idle.append((key, live))
        for key, live in idle:
            self._drop(key, live)

    def _control(self, spec: TensorSpec, kind: str, place: SequencePlace) -> Array:
        shape = tuple(1 if size == -1 else size for size in spec.shape)
        if kind == CORRID:
            return _correlation(spec, shape, place.id)
        value = {START: place.start, END: place.end, READY: True}[kind]
        return np.full(shape, value, dtype=NUMPY_OF[spec.datatype])


def _correlation(spec: TensorSpec, shape: tuple[int, ...], name: str) -> Array:
    if spec.datatype == "BYTES":
        array = np.empty(shape, dtype=np.object_)
        array.fill(name.encode())
        return array
    bounds = np.iinfo(spec.datatype.lower())
    if not name.isdigit() or int(name) > bounds.max:
        raise InvalidArgument(
            f"the model takes sequence ids of {spec.datatype}; number the sequences so that they fit",
            reason="SEQUENCE_ID",
            field="parameters[sequence_id]",
        )
    return np.full(shape, int(name), dtype=NUMPY_OF[spec.datatype])


def _zeros(spec: TensorSpec, rows: int) -> Array:
    """The state before the first request; a free first dimension has as many rows as the request."""
    shape = tuple((rows if place == 0 else 1) if size == -1 else size for place, size in enumerate(spec.shape))
    if spec.datatype == "BYTES":
        array = np.empty(shape, dtype=np.object_)
        array.fill(b"")
        return array
    return np.zeros(shape, dtype=NUMPY_OF[spec.datatype])
