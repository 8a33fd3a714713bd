"""Who must have signed a model before this worker loads it: the project's keys, and the operator's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from sealane.errors import FailedPrecondition, InvalidArgument, SealaneError
from sealane.registry.v1 import variant_service_pb2 as registry
from sealane.security import model_signing

Keys = Mapping[str, ec.EllipticCurvePublicKey]
"""Public keys by :func:`sealane.security.model_signing.key_id_of`."""


def trusted_keys(folder: Path | None) -> Keys:
    """The operator's keys: every file of a folder; none where there is no folder.

    Raises:
        InvalidArgument: the folder cannot be read, holds no key or something else: a worker that trusts nobody by
            mistake must not start as one that trusts everybody.
    """
    if folder is None:
        return {}
    try:
        pems = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    except OSError as error:
        raise _bad(f"cannot be read ({error.strerror})") from error
    try:
        keys = [model_signing.load_public_key(pem) for pem in pems.values()]
    except InvalidArgument as error:
        raise _bad(f"holds something else than public keys: {error.message}") from error
    if not keys:
        raise _bad("holds no key")
    return {model_signing.key_id_of(key): key for key in keys}


def check_signed(variant: registry.Variant, trusted: Keys) -> None:
    """Refuse a variant that nobody signed who has to have.

    Args:
        variant: with its files, the bundles over them, and the keys of which its project demands one.
        trusted: the operator's keys; empty where he demands none. What registry and scheduler say of theirs does not
            count here, so that neither can have anything else run.

    Raises:
        FailedPrecondition: not signed as the project demands (SIGNATURE_REQUIRED) or the operator (SIGNER_NOT_TRUSTED).
    """
    if variant.signer_keys:
        keys = [model_signing.load_public_key(pem) for pem in variant.signer_keys]
        if why := _unsigned(variant, {model_signing.key_id_of(key): key for key in keys}):
            raise FailedPrecondition(
                f"the project's policy demands a signature before a worker loads this variant: {why}; "
                "sign it with one of the policy's keys and attach the bundle",
                reason="SIGNATURE_REQUIRED",
            )
    if trusted and (why := _unsigned(variant, trusted)):
        raise FailedPrecondition(
            f"this worker loads only what keys that its operator trusts have signed: {why}; sign the variant with one "
            "of them, or add the signer's key to SEALANE_WORKER_TRUSTED_SIGNERS",
            reason="SIGNER_NOT_TRUSTED",
        )


def _unsigned(variant: registry.Variant, keys: Keys) -> str:
    """Why no bundle is of one of these keys over exactly these files; empty where one is."""
    files = {file.path: file.sha256 for file in variant.files}
    why = "it has no signature"
    for item in variant.signatures:
        try:
            model_signing.verify(item.bundle, keys, files)
        except SealaneError as error:
            why = error.message
        else:
            return ""
    return why


def _bad(why: str) -> InvalidArgument:
    return InvalidArgument(
        f"SEALANE_WORKER_TRUSTED_SIGNERS {why}; name a folder of public keys in PEM, or leave it out",
        reason="SETTING_INVALID",
    )
