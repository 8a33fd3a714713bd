"""Whether the rows of a model's batch leave each other alone, so that requests of several callers may run together.

A free first dimension does not say so: a model may centre its batch, or take two of them that have nothing to do with
each other. So a model is asked before it is trusted: two different rows together, and each alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sealane.errors import FailedPrecondition, SealaneError
from sealane.tensors import NUMPY_OF, Array, Signature
from sealane_worker.model.queueing import Batching
from sealane_worker.runtimes import Runtime

#: Kernels differ a little with the size of the batch, and int8 by a step.
_RELATIVE, _ABSOLUTE = 5e-3, 5e-3
_SEED = 7


def batchable(runtime: Runtime, signatures: Sequence[Signature], batching: Batching) -> frozenset[str]:
    """Names of the signatures whose requests may run together.

    Those that were asked and agree; those that cannot be asked (texts, other free dimensions) only where the
    variant's manifest wants batches.

    Raises:
        FailedPrecondition: the manifest wants batches of a model whose rows influence each other.
    """
    if batching.max_batch_size == 1:
        return frozenset()
    wanted = batching.max_batch_size > 1 or bool(batching.preferred_batch_size)
    found = set()
    for signature in signatures:
        if not all(spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs)):
            continue
        alone = _independent(runtime, signature)
        if wanted and alone is False:
            raise FailedPrecondition(
                f"rows of signature {signature.name!r} influence each other, so requests cannot run together; "
                "take dynamic_batching out of the manifest",
                reason="MANIFEST_BATCHING",
                field="dynamic_batching",
            )
        if alone or (wanted and alone is None):
            found.add(signature.name)
    return frozenset(found)


def _independent(runtime: Runtime, signature: Signature) -> bool | None:
    """Whether two rows together give what each gives alone; None where the model cannot be asked."""
    rows = _two_rows(signature)
    if rows is None:
        return None
    try:
        together = runtime.run(rows, signature.name)
        for index in range(2):
            single = runtime.run({name: array[index : index + 1] for name, array in rows.items()}, signature.name)
            if not all(_same(together[name], single[name], index) for name in together):
                return False
    except SealaneError:
        return None  # it does not take such values: its own checks are none of ours
    return True


def _two_rows(signature: Signature) -> dict[str, Array] | None:
    random = np.random.default_rng(_SEED)
    rows: dict[str, Array] = {}
    for spec in signature.inputs:
        if -1 in spec.shape[1:] or spec.datatype in ("BYTES", "BF16"):
            return None
        shape, dtype = (2, *spec.shape[1:]), NUMPY_OF[spec.datatype]
        # Numbers of classes and words begin at 0: small ones are valid for most models.
        made = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
        rows[spec.name] = made.astype(dtype)
    return rows or None


def _same(together: Array, single: Array, index: int) -> bool:
    if together.shape[:1] != (2,) or single.shape[:1] != (1,):
        return False
    one, other = together[index : index + 1], single
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fiub":
        return bool(np.array_equal(one, other))
    return bool(
        np.allclose(one.astype(np.float64), other.astype(np.float64), rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)
    )
