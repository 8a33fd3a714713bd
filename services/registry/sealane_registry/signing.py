"""The rules about signatures of variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from sealane.clock import Clock
from sealane.errors import SealaneError
from sealane.records.tables import Actor
from sealane.security import model_signing
from sealane_registry import policy
from sealane_registry.policy import Policy
from sealane_registry.rows import Scope, SignatureRow, VariantRow
from sealane_registry.store import Store


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of verifying one signature; `reason` says why it is not valid."""

    key_id: str
    key_name: str
    reason: str = ""


class SignatureRules:
    """What may be done to signatures. Every method runs inside one transaction."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def attach(
        self, store: Store, actor: Actor, row: VariantRow, bundle: bytes, files: Mapping[str, str]
    ) -> SignatureRow:
        """Add a signature to a variant with these files; one of the same key stays as it is.

        Raises:
            InvalidArgument: it is no bundle.
            FailedPrecondition: of an unknown key, not verified, or over other files.
        """
        demands = policy.from_json(store.policy(row.project).content)
        (key_id,) = check_bundles(demands, [bundle], files)
        now = self._clock.now()
        added = SignatureRow(key_id, bundle, now)
        if store.add_signature(Scope(row.project, row.model, row.number, row.variant), added):
            store.record(actor, "AttachSignature", row.name, now, key_id=key_id)
            return added
        return next(item for item in row.signatures if item.key_id == key_id)


def check_bundles(demands: Policy, bundles: Sequence[bytes], files: Mapping[str, str]) -> list[str]:
    """Verify bundles over these files with the policy's keys; returns the keys' ids.

    Raises:
        InvalidArgument: one is no bundle.
        FailedPrecondition: one is of an unknown key, does not verify, or is over other files.
    """
    keys = _keys(demands)
    return [model_signing.verify(bundle, keys, files).key_id for bundle in bundles]


def verdicts(demands: Policy, row: VariantRow, files: Mapping[str, str]) -> list[Verdict]:
    """Verify all signatures of a variant over these files with the keys that the policy has now."""
    keys, found = _keys(demands), []
    for item in row.signatures:
        try:
            model_signing.verify(item.bundle, keys, files)
            found.append(Verdict(item.key_id, demands.key_named(item.key_id)))
        except SealaneError as error:
            found.append(Verdict(item.key_id, demands.key_named(item.key_id), error.message))
    return found


def blocked(demands: Policy, row: VariantRow) -> str:
    """Why workers do not load a variant; empty where they do."""
    return demands.unsigned_reason([item.key_id for item in row.signatures])


def _keys(demands: Policy) -> dict[str, ec.EllipticCurvePublicKey]:
    return {key.key_id: model_signing.load_public_key(key.pem.encode()) for key in demands.signer_keys}
