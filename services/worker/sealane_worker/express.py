"""The native front, where it is installed: it repeats what was decided here (docs/adr/0025-native-front.md).

A call that ends well may be one that will come again: the same caller, the same request but for the contents of its
tensors. Then the front is told what it came to, and the next one goes past the interpreter. What may change an answer,
another model or a revocation, makes the front forget everything.
"""

from __future__ import annotations

import secrets
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealane import telemetry
from sealane.clock import Clock
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import Cancelled, Internal, InvalidArgument, SealaneError
from sealane.native import library
from sealane.protocols import tfserving
from sealane.protocols.call import InferenceCall
from sealane.rpc.call import Call, Identity
from sealane.rpc.middleware import log_call
from sealane.rpc.status import translate
from sealane.rpc.transport import headers_of, outward
from sealane.security.native_opening import NativeOpener
from sealane.security.opener import Opened
from sealane.security.tokens import LEEWAY_SECONDS
from sealane_worker import slots, wire
from sealane_worker.box import Box, closed, crashed
from sealane_worker.deployment import Inference, Model
from sealane_worker.engine import Engine
from sealane_worker.sealed import told_inside
from sealane_worker.sealing import SealingKey

if TYPE_CHECKING:
    import sealane_native

_TRY_AGAIN = 0.1
#: Values of SEALANE_WORKER_FRONT.
AUTO, NATIVE, PYTHON = "auto", "native", "python"
_TFSERVING = "/tensorflow.serving."
#: Arrays whose contents are not all as good as any others: texts have lengths in them, and a bool is 0 or 1.
_CONTENTS_MATTER = "SUOb"


def wanted(setting: str) -> bool:
    """Whether the native front holds the port.

    Raises:
        InvalidArgument: a setting that does not exist, or the front is demanded and not installed.
    """
    if setting not in (AUTO, NATIVE, PYTHON):
        raise InvalidArgument(
            f"SEALANE_WORKER_FRONT is {setting!r}, it must be {AUTO}, {NATIVE} or {PYTHON}", reason="SETTING_INVALID"
        )
    if setting == NATIVE and library is None:
        raise InvalidArgument(
            "SEALANE_WORKER_FRONT is 'native' and the native front is not installed, or of another version; "
            "pip install ./services/worker/native (needs Rust), or leave the setting out",
            reason="SETTING_INVALID",
        )
    return setting != PYTHON and library is not None


@dataclass(frozen=True, slots=True)
class _About:
    """What is said of a call that failed in the native front."""

    path: str
    subject: str
    box: weakref.ref[Box]
    """Not kept: a model that has left memory leaves all of it."""


class Express:
    """What the native front is told, and asks.

    Args:
        engine: knows what is loaded.
        clock: tells when tokens end.
        capacity: calls that the worker takes in all, whichever way they come.
        sealing: the key to which requests are sealed, and where its statement says that this worker stands.
    """

    def __init__(self, engine: Engine, clock: Clock, capacity: int, sealing: SealingKey) -> None:
        self.opener = NativeOpener(sealing.pair, clock)
        """Opens what came sealed, and shares with the front what it knows of that."""
        self._sealing = sealing
        self.places = library.Places(capacity)
        """Admission that both ways into the worker share."""
        self._engine = engine
        self._clock = clock
        self._front: sealane_native.Front | None = None
        self._packer = wire.Packer()

    def attach(self, front: sealane_native.Front) -> None:
        """Begin to tell it."""
        self._front = front
        self._engine.on_change = self._sealing.on_change = front.forget

    def learn(
        self, call: Call, model: Model, asked: Inference, inference: InferenceCall, opened: Opened | None
    ) -> None:
        """An inference ended well; tell what it came to, if that will be so again.

        Args:
            call: the call.
            model: what ran.
            asked: what was asked of it.
            inference: the request.
            opened: the envelope that it was in, if it came sealed.
        """
        front = self._front
        known = _plain(call) if opened is None else _known_by_its_seal(call)
        if front is None or not call.ticket or not known or not _repeatable(asked, inference, model):
            return
        served = self._engine.native(model)
        if served is None:
            return
        first = next(iter(asked.inputs.values()), None)
        rows = first.shape[0] if first is not None and first.shape else 1
        tfs = (call.method.path if opened is None else opened.method).startswith(_TFSERVING)
        repeat = library.Repeat(
            call.caller.project,
            (served.slots, served.statistics),
            tfs,
            self._packer.pack(asked.inputs, asked.signature, asked.outputs).layout,
            [(name, array.nbytes) for name, array in asked.inputs.items()],
            (rows, asked.priority, asked.flow),
            _head(inference, model, asked.signature, tfs=tfs),
            _About(call.method.path, call.caller.subject, weakref.ref(served.box)),
            None if opened is None else _came_sealed(call.caller, opened),
        )
        until = self._until(call.caller)
        if opened is not None:  # by the statement of this moment
            until = min(until, time.monotonic() + self._sealing.ends - self._clock.now())
        front.learn(call.ticket, until, repeat)

    def answered(self, call: Call) -> None:
        """A call ended well: its caller is known, so that what he sends next may be read before it is looked at."""
        if self._front is not None and call.ticket and call.identity is not None and call.identity.expires:
            self._front.learn(call.ticket, self._until(call.identity), None)

    def carried(self, call: Call) -> sealane_native.Carried | None:
        """A call that came sealed over a lane, to be answered by the front if it can; None where it cannot."""
        if self._front is None or not call.peer.via_gateway or telemetry.sampled() or not _known_by_its_seal(call):
            return None
        return self._front.carried(call.metadata.get("authorization", ""))

    def _until(self, caller: Identity) -> float:
        return time.monotonic() + caller.expires + LEEWAY_SECONDS - self._clock.now()

    def fail(self, about: object, kind: str, told: bytes, request_id: str, spent: float) -> list[tuple[str, str]]:
        """Headers of the answer to a call that failed in the front; writes its access line."""
        assert isinstance(about, _About)
        request_id = request_id[:64] or secrets.token_hex(16)
        failure = outward(translate(_failure(about.box(), kind, told), request_id), about.path)
        log_call(about.path, failure, spent, request_id, about.subject)
        return headers_of(failure, request_id)

    def fail_inside(self, about: object, kind: str, told: bytes, request_id: str) -> bytes:
        """What is said inside the seal of a call that failed in the front."""
        assert isinstance(about, _About)
        return told_inside(_failure(about.box(), kind, told), request_id[:64] or secrets.token_hex(16))


def _plain(call: Call) -> bool:
    """Whether its caller is told by the token alone, and nothing of it is counted elsewhere."""
    return not call.caller.key_thumbprint and not call.peer.via_gateway and _alone(call)


def _known_by_its_seal(call: Call) -> bool:
    """Whether its caller is told by the token and by what was sealed, and nothing of it is counted elsewhere."""
    return bool(call.caller.key_thumbprint) and _alone(call)


def _alone(call: Call) -> bool:
    caller = call.caller
    bound = caller.certificate_thumbprint or call.peer.spiffe_id
    return not bound and not caller.charged and call.within is None and not call.method.access.high_risk


def _came_sealed(caller: Identity, opened: Opened) -> tuple[str, str, str, str, str, bytes, bytes | bytearray]:
    return (
        opened.deployment,
        opened.method,
        opened.variant_digest,
        caller.token_id,
        caller.key_thumbprint,
        opened.sender,
        opened.plaintext,
    )


def _repeatable(asked: Inference, inference: InferenceCall, model: Model) -> bool:
    if asked.sequence is not None or inference.classify or inference.timeout_us:
        return False
    return model.chain is None and not any(array.dtype.kind in _CONTENTS_MATTER for array in asked.inputs.values())


def _head(inference: InferenceCall, model: Model, signature: str, *, tfs: bool) -> bytes:
    """The answer without tensors and id."""
    name, version = inference.target.model, str(model.assignment.version)
    if tfs:
        return tfserving.response_head(name, version, signature).SerializeToString()
    return oip.ModelInferResponse(model_name=name, model_version=version).SerializeToString()


def _failure(box: Box | None, kind: str, told: bytes) -> SealaneError:
    if kind == "told":
        return slots.told(told)
    if kind == "crashed":
        return box.crashed() if box is not None else crashed(_TRY_AGAIN)
    if kind == "closed":
        return closed()
    if kind == "late":
        return slots.late()
    if kind == "left":
        return Cancelled("the caller does not wait for the answer any more")
    return Internal("the model process sent an answer that cannot be read")
