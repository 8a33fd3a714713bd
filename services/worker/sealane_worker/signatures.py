"""Which signature of a model a name means."""

from __future__ import annotations

from collections.abc import Mapping

from sealane.errors import FailedPrecondition
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import Signature


def pick_signature(signatures: Mapping[str, Signature], name: str) -> Signature:
    """The signature called `name`; for an empty name the default one, or the only one there is.

    Raises:
        FailedPrecondition: there is none (the status that TensorFlow Serving gives).
    """
    if not name and DEFAULT_SIGNATURE not in signatures and len(signatures) == 1:
        return next(iter(signatures.values()))
    signature = signatures.get(name or DEFAULT_SIGNATURE)
    if signature is None:
        raise FailedPrecondition(
            f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found; use one of {sorted(signatures)}',
            reason="SIGNATURE_UNKNOWN",
            field="signature_name",
        )
    return signature
