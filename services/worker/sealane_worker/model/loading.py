"""Loads the model that the front asks for and tells what it takes and gives, or why it cannot be loaded."""

from __future__ import annotations

import importlib
import logging
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from sealane.errors import FailedPrecondition, SealaneError
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec
from sealane_worker import control
from sealane_worker.control import Header, Json
from sealane_worker.model.queueing import Batching
from sealane_worker.model.rows import batchable
from sealane_worker.model.server import Loaded, ModelServer
from sealane_worker.rings import ModelRings
from sealane_worker.runtimes import Runtime, RuntimeInfo, RuntimeOptions

logger = logging.getLogger(__name__)


def load_and_answer(sock: socket.socket, message: Header, level: str) -> ModelServer | None:
    """Load, answer on the control socket, and give the server of the slots; none where the load failed."""
    logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
    answer: Header
    server = None
    try:
        answer, server = _load(message)
    except SealaneError as error:
        answer = {"ok": False, "kind": error.kind, "reason": error.reason, "field": error.field}
        answer["message"] = error.message
    except MemoryError:
        answer = {"ok": False, "kind": "RESOURCE_EXHAUSTED", "reason": "MEMORY_EXHAUSTED", "field": ""}
        answer["message"] = "the model does not fit into memory; use a smaller variant or another worker"
    except Exception as error:  # supervisor: whatever a model file does to a framework is told, not a crash
        logger.exception("model cannot be loaded")
        answer = {"ok": False, "kind": "FAILED_PRECONDITION", "reason": "MODEL_UNREADABLE", "field": ""}
        answer["message"] = f"the model cannot be loaded ({type(error).__name__}); check it with its own framework"
    try:
        control.send_control(sock, {**answer, "sandbox": level})
    except control.Disconnected:
        return None
    return server


def _load(message: Header) -> tuple[Header, ModelServer]:
    # First of all, so that a model that is refused leaves nothing behind: slots and rings are this process's from here.
    slots = [socket.socket(fileno=descriptor) for descriptor in cast(list[int], message["slots"])]
    rings = ModelRings(*cast(list[int], message["rings"]))
    started = time.monotonic()
    runtime, signatures = _runtime(message)
    warmed = _run_zeros(runtime, signatures)
    batching = cast(dict[str, Json], message["batching"])
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in batching.items()}
    policy = Batching(**plain)  # type: ignore[arg-type]
    loaded = Loaded(
        runtime=runtime,
        signatures=signatures,
        batching=policy,
        instances=cast(int, message["instances"]),
        batchable=batchable(runtime, signatures, policy),
    )
    answer: Header = {
        "ok": True,
        "signatures": [signature_to_json(signature) for signature in signatures],
        "load_s": time.monotonic() - started,
        "warmed": cast(list[Json], warmed),
    }
    return answer, ModelServer(loaded, slots, rings)


def _runtime(message: Header) -> tuple[Runtime, tuple[Signature, ...]]:
    module, _, attribute = cast(str, message["runtime"]).partition(":")
    info = getattr(importlib.import_module(module), attribute)
    if not isinstance(info, RuntimeInfo):
        raise FailedPrecondition(f"{module}:{attribute} is no runtime; name a RuntimeInfo in its entry point")
    runtime = info.create()
    options = RuntimeOptions(
        threads=cast(int, message["threads"]),
        instances=cast(int, message["instances"]),
        device=cast(str, message["device"]),
        settings=cast(Mapping[str, str], message["settings"]),
    )
    path = Path(cast(str, message["path"]))
    signatures = runtime.load(path, options)
    before, after = cast(list[dict[str, object]], message["before"]), cast(list[dict[str, object]], message["after"])
    if not before and not after:
        return runtime, signatures
    from sealane_worker.model.steps import Steps, wrap

    steps = Steps(tuple(before), tuple(after), executable=bool(message["executable"]))
    return wrap(runtime, signatures, steps, path if path.is_dir() else path.parent)


def _run_zeros(runtime: Runtime, signatures: tuple[Signature, ...]) -> list[int]:
    """Run every signature once on zeros; returns the rows that were run.

    The first call of a model pays for its graph and its buffers; nobody's request should. It is also the smoke test:
    a model that cannot run on zeros of its own signature is not taken.
    """
    warmed: list[int] = []
    for signature in signatures:
        zeros = zeros_for(signature)
        if zeros is not None:
            runtime.run(zeros, signature.name)
            warmed = [1]
    return warmed


def zeros_for(signature: Signature, rows: int = 1) -> dict[str, Array] | None:
    """Inputs of zeros; none where they would say nothing.

    That is where a dimension other than the first is free (1 may not fit), and where an input is ``BYTES``: an empty
    string is not an image.
    """
    inputs: dict[str, Array] = {}
    for spec in signature.inputs:
        if -1 in spec.shape[1:] or spec.datatype == "BYTES":
            return None
        shape = tuple(rows if size == -1 else size for size in spec.shape)
        inputs[spec.name] = np.zeros(shape, NUMPY_OF[spec.datatype])
    return inputs


def signature_to_json(signature: Signature) -> Json:
    """A signature as plain JSON; :func:`signature_from_json` reads it."""

    def specs(tensors: tuple[TensorSpec, ...]) -> Json:
        return [[spec.name, spec.datatype, list(spec.shape)] for spec in tensors]

    inputs, outputs = specs(signature.inputs), specs(signature.outputs)
    return {"name": signature.name, "inputs": inputs, "outputs": outputs, "method": signature.method}


def signature_from_json(value: Json) -> Signature:
    """The inverse of :func:`signature_to_json`."""
    fields = cast(dict[str, list[tuple[str, str, list[int]]]], value)

    def specs(key: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, datatype, tuple(shape)) for name, datatype, shape in fields[key])

    return Signature(specs("inputs"), specs("outputs"), str(fields["name"]), str(fields.get("method", "")))
