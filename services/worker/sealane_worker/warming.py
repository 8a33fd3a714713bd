"""Runs a model before its first caller does: recorded requests, and the batch sizes it will be asked for."""

from __future__ import annotations

import time
from dataclasses import replace

from sealane.errors import FailedPrecondition, SealaneError
from sealane.tensors import Signature
from sealane_worker.child import Child, LoadedModel
from sealane_worker.control import Disconnected
from sealane_worker.model.loading import zeros_for
from sealane_worker.signatures import pick_signature
from sealane_worker.spec import ModelSpec, Run


def warm_up(child: Child, loaded: LoadedModel, spec: ModelSpec, timeout: float) -> LoadedModel:
    """Run what is to be run; returns what the model told, with what was warmed.

    Raises:
        FailedPrecondition: the model refuses a request that was recorded for it (WARM_UP_FAILED).
    """
    started = time.monotonic()
    until = started + timeout
    rows = set(loaded.warmed_rows)
    known = {signature.name: signature for signature in loaded.signatures}
    for index, request in enumerate(spec.warm_up):
        try:
            signature = pick_signature(known, request.signature)
            signature.check_inputs(request.inputs)
            child.run(Run(request.inputs, signature.name, until))
        except Disconnected:
            raise FailedPrecondition(
                f"the model's process ended at warm-up request {index}; record requests that it answers",
                reason="WARM_UP_FAILED",
            ) from None
        except SealaneError as error:
            raise FailedPrecondition(
                f"the model refuses its warm-up request {index} ({error.message}); record requests that it answers",
                reason="WARM_UP_FAILED",
            ) from error
        rows.add(next((array.shape[0] for array in request.inputs.values() if array.shape), 1))
    for size in sorted(set(spec.serving.batching.preferred_batch_size) - rows):
        if _run_zeros(child, loaded.signatures, size, until):
            rows.add(size)
    return replace(
        loaded,
        load_seconds=loaded.load_seconds + time.monotonic() - started,
        warmed_rows=tuple(sorted(rows)),
        warmed_requests=len(spec.warm_up),
    )


def _run_zeros(child: Child, signatures: tuple[Signature, ...], size: int, until: float) -> bool:
    """Run the signatures that take batches on `size` rows of zeros; whether there was one."""
    ran = False
    for signature in signatures:
        zeros = zeros_for(signature, size)
        if zeros is not None and all(spec.shape[:1] == (-1,) for spec in signature.inputs):
            child.run(Run(zeros, signature.name, until))
            ran = True
    return ran
