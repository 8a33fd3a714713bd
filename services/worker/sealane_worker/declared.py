"""Whether a variant takes and gives what its version says. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import Signature, TensorSpec

_REMEDY = "push it as another version, whose signatures are its own"


def difference(declared: Sequence[Signature], told: Sequence[Signature], *, converted: bool = False) -> str:
    """The first difference, with what to do about it; empty where callers of the version can call the variant.

    A dimension that the version leaves free must be free in the variant's inputs. A variant may say less of its
    outputs' shapes, and may have signatures that the version does not tell of.

    Args:
        declared: of the version.
        told: by the model once it was loaded.
        converted: whether it was made from another variant: the default signature is then enough, since conversions
            keep that one alone.
    """
    known = {signature.name: signature for signature in told}
    for signature in declared:
        mine = known.get(signature.name)
        if mine is None:
            if converted and signature.name != DEFAULT_SIGNATURE and len(declared) > 1:
                continue
            return f"it has no signature {signature.name!r}, only {sorted(known)}; {_REMEDY}"
        inputs = _difference("input", signature.inputs, mine.inputs)
        if found := inputs or _difference("output", signature.outputs, mine.outputs):
            return f"signature {signature.name!r}: {found}; {_REMEDY}"
    return ""


def _difference(kind: str, declared: Sequence[TensorSpec], told: Sequence[TensorSpec]) -> str:
    known = {spec.name: spec for spec in told}
    for spec in declared:
        mine = known.pop(spec.name, None)
        if mine is None:
            return f"{kind} {spec.name!r} of the version is missing"
        if mine.datatype != spec.datatype:
            return f"{kind} {spec.name!r} is {mine.datatype}, the version says {spec.datatype}"
        if not _fits(kind, spec.shape, mine.shape):
            return f"{kind} {spec.name!r} has shape {list(mine.shape)}, the version says {list(spec.shape)}"
    return f"{kind} {next(iter(known))!r} is not in the version" if known else ""


def _fits(kind: str, declared: tuple[int, ...], told: tuple[int, ...]) -> bool:
    if len(declared) != len(told):
        return False
    return all(
        want == has or has == -1 or (want == -1 and kind == "output") for want, has in zip(declared, told, strict=True)
    )
