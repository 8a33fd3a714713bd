"""The model process: loads one model and runs it, one request after another, over one inherited socket.

Started by :mod:`sealane_worker.box` as ``python -m sealane_worker.model_process FD``; it has no gRPC and no
business with anything but its socket and its model's files, so that a crash, a hang or a hostile model stays here.

Requests (see :mod:`sealane_worker.frames`)::

    {"op": "load", "runtime", "path", "threads"}          -> {"ok": true, "signatures": [...]}
    {"op": "run", "id", "signature", "outputs", "deadline"} + tensors -> {"ok": true, "id", "run_s"} + tensors
                                                          or {"ok": false, "id", "kind", "reason", "field", "message"}
"""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
import threading
import time
from pathlib import Path
from typing import cast

import numpy as np

from sealane.errors import DeadlineExceeded, FailedPrecondition, SealaneError
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec
from sealane_worker.frames import Disconnected, Frame, FrameReader, Header, Json, send_frame
from sealane_worker.memory import protect_memory
from sealane_worker.runtimes import Runtime, RuntimeOptions, create_runtime

logger = logging.getLogger(__name__)


def signature_to_json(signature: Signature) -> Json:
    """A signature as plain JSON; :func:`signature_from_json` reads it."""

    def specs(tensors: tuple[TensorSpec, ...]) -> Json:
        return [[spec.name, spec.datatype, list(spec.shape)] for spec in tensors]

    return {"name": signature.name, "inputs": specs(signature.inputs), "outputs": specs(signature.outputs)}


def signature_from_json(value: Json) -> Signature:
    """The inverse of :func:`signature_to_json`."""
    fields = cast(dict[str, list[tuple[str, str, list[int]]]], value)

    def specs(key: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, datatype, tuple(shape)) for name, datatype, shape in fields[key])

    return Signature(specs("inputs"), specs("outputs"), str(fields["name"]))


def zeros_for(signature: Signature) -> dict[str, Array] | None:
    """Inputs of zeros with batch size 1; none where a dimension other than the first is free (1 may not fit)."""
    inputs: dict[str, Array] = {}
    for spec in signature.inputs:
        if -1 in spec.shape[1:]:
            return None
        shape = tuple(1 if size == -1 else size for size in spec.shape)
        if spec.datatype == "BYTES":
            inputs[spec.name] = np.full(shape, b"", np.object_)
        else:
            inputs[spec.name] = np.zeros(shape, NUMPY_OF[spec.datatype])
    return inputs


class ModelServer:
    """Answers the frames of one connection until the other end hangs up."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader(sock, reuse=True)
        self._runtime: Runtime | None = None

    def serve(self) -> None:
        """Run until the front is gone."""
        while True:
            try:
                frame = self._reader.read()
            except Disconnected:
                break
            header: Header
            arrays: dict[str, Array] = {}
            try:
                header, arrays = self._answer(frame)
            except SealaneError as error:
                header = {"ok": False, "kind": error.kind, "reason": error.reason, "message": error.message}
                header["field"] = error.field
            except Exception:  # supervisor: one bad request must not end the others
                logger.exception("model process failed")
                header = {"ok": False, "kind": "INTERNAL", "reason": "MODEL_FAILED", "field": ""}
                header["message"] = "the model failed; its process log has the details"
            header["id"] = frame.header.get("id")
            try:
                send_frame(self._sock, header, arrays)
            except Disconnected:
                break
        if self._runtime is not None:
            self._runtime.close()

    def _answer(self, frame: Frame) -> tuple[Header, dict[str, Array]]:
        if frame.header["op"] == "load":
            return self._load(frame.header), {}
        return self._run(frame)

    def _load(self, header: Header) -> Header:
        runtime = create_runtime(cast(str, header["runtime"]))
        signatures = runtime.load(Path(cast(str, header["path"])), RuntimeOptions(cast(int, header["threads"])))
        # The first call of a model pays for its graph and its buffers; nobody's request should. It is also the
        # smoke test: a model that cannot run on zeros of its own signature is not taken.
        for signature in signatures:
            zeros = zeros_for(signature)
            if zeros is not None:
                runtime.run(zeros, signature.name)
        self._runtime = runtime
        return {"ok": True, "signatures": [signature_to_json(signature) for signature in signatures]}

    def _run(self, frame: Frame) -> tuple[Header, dict[str, Array]]:
        if self._runtime is None:
            raise FailedPrecondition("the model is not loaded")
        started = time.monotonic()
        if started >= cast(float, frame.header["deadline"]):
            raise DeadlineExceeded("the deadline passed before the model could start; allow more time")
        outputs = self._runtime.run(frame.arrays, cast(str, frame.header["signature"]))
        wanted = cast(list[str], frame.header["outputs"])
        if wanted:
            outputs = {name: outputs[name] for name in wanted}
        return {"ok": True, "run_s": time.monotonic() - started}, outputs


def _exit_with(sock: socket.socket) -> None:
    """End the process as soon as the front is gone, even in the middle of a long or endless inference."""
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    poller.poll()
    os._exit(0)


def main() -> int:
    """Command line: ``python -m sealane_worker.model_process FD``."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    protect_memory()
    sock = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_exit_with, args=(sock,), name="hang-up", daemon=True).start()
    ModelServer(sock).serve()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
