"""A project's policy as plain data: what is demanded of its models. It is kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sealane import names
from sealane.errors import InvalidArgument
from sealane.security import model_signing, permissions

UNSIGNED, SIGNED, SIGNED_BY = "UNSIGNED", "SIGNED", "SIGNED_BY"
MAX_KEYS = 64
MAX_GATES = 64
MAX_CONDITIONS = 32
#: Figures of a measurement that have a field of their own.
FIELDS = ("accuracy", "latency_p50_us", "latency_p99_us", "memory_bytes", "rows_per_second")


@dataclass(frozen=True, slots=True)
class SignerKey:
    """A public key that may sign models; `pem` as text."""

    name: str
    pem: str
    key_id: str


@dataclass(frozen=True, slots=True)
class RequiredEvaluation:
    """A figure that has to be measured; see the contract."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    dataset: str = ""
    device_class: str = ""
    min_rows: int = 0
    by_job: bool = False
    every_variant: bool = False
    max_regression: float = 0.0


@dataclass(frozen=True, slots=True)
class RequiredApprovals:
    """Approvals that are needed; `role` is empty for any."""

    role: str
    count: int


@dataclass(frozen=True, slots=True)
class Gate:
    """What a version must meet before it may have an alias."""

    aliases: tuple[str, ...]
    load_check: bool = False
    approvals: tuple[RequiredApprovals, ...] = ()
    evaluations: tuple[RequiredEvaluation, ...] = ()
    signers: tuple[str, ...] = ()
    lineage: bool = False

    def is_for(self, alias: str) -> bool:
        """Whether it is about an alias."""
        return alias in self.aliases or "*" in self.aliases


@dataclass(frozen=True, slots=True)
class Policy:
    """All of it; the default demands nothing and allows no format that holds code."""

    allow_executable_formats: bool = False
    signing: str = UNSIGNED
    signer_keys: tuple[SignerKey, ...] = ()
    required_signers: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()

    def key_named(self, key_id: str) -> str:
        """Name of a key; empty where the policy does not know it."""
        return next((key.name for key in self.signer_keys if key.key_id == key_id), "")

    def demanded_keys(self) -> tuple[SignerKey, ...]:
        """Keys of which one must have signed; empty where none has to."""
        if self.signing == UNSIGNED:
            return ()
        return tuple(key for key in self.signer_keys if self.signing == SIGNED or key.name in self.required_signers)

    def unsigned_reason(self, key_ids: Sequence[str]) -> str:
        """Why signatures of these keys are not enough; empty where they are."""
        if self.signing == UNSIGNED or any(key.key_id in key_ids for key in self.demanded_keys()):
            return ""
        wanted = ", ".join(key.name for key in self.demanded_keys()) or "a key that the policy does not have yet"
        return f"the project's policy demands a signature of {wanted}"


def to_json(policy: Policy) -> bytes:
    """As it is kept."""
    return json.dumps(asdict(policy), sort_keys=True).encode()


def from_json(content: bytes) -> Policy:
    """As it was kept; nothing kept is the default."""
    if not content:
        return Policy()
    told: Mapping[str, Any] = json.loads(content)
    return Policy(
        told["allow_executable_formats"],
        told["signing"],
        tuple(SignerKey(**item) for item in told["signer_keys"]),
        tuple(told["required_signers"]),
        tuple(_gate(item) for item in told["gates"]),
    )


def signer_key(name: str, pem: bytes) -> SignerKey:
    """A key by its PEM.

    Raises:
        InvalidArgument: it is none that can sign models, or has no acceptable name.
    """
    names.check_id(name, "policy.signer_keys.name")
    key = model_signing.load_public_key(pem)
    return SignerKey(name, model_signing.pem_of(key).decode(), model_signing.key_id_of(key))


def check(policy: Policy) -> Policy:
    """Refuse a policy that nothing could meet, or that means nothing.

    Raises:
        InvalidArgument: so it is, with the field.
    """
    known = [key.name for key in policy.signer_keys]
    if len(known) > MAX_KEYS or len(set(known)) != len(known):
        raise _bad(f"at most {MAX_KEYS} keys, each with a name of its own", "signer_keys")
    if policy.signing not in (UNSIGNED, SIGNED, SIGNED_BY):
        raise _bad("a known requirement", "signing")
    unknown = set(policy.required_signers) - set(known)
    if unknown or (policy.signing == SIGNED_BY and not policy.required_signers):
        raise _bad("names of keys among signer_keys", "required_signers")
    if policy.signing == SIGNED and not known:
        raise _bad("at least one key where signatures are demanded", "signer_keys")
    if len(policy.gates) > MAX_GATES:
        raise _bad(f"at most {MAX_GATES} gates", "gates")
    for place, gate in enumerate(policy.gates):
        _check_gate(gate, known, f"gates[{place}]")
    return policy


def _check_gate(gate: Gate, known: Sequence[str], where: str) -> None:
    if not gate.aliases:
        raise _bad("aliases, or '*' for all", f"{where}.aliases")
    for alias in gate.aliases:
        if alias != "*":
            names.check_id(alias, f"policy.{where}.aliases", label=True)
    if set(gate.signers) - set(known):
        raise _bad("names of keys among signer_keys", f"{where}.signers")
    if len(gate.approvals) + len(gate.evaluations) > MAX_CONDITIONS:
        raise _bad(f"at most {MAX_CONDITIONS} approvals and evaluations", where)
    for approvals in gate.approvals:
        if approvals.role and approvals.role not in permissions.ROLES:
            raise _bad(f"one of the roles {sorted(permissions.ROLES)}", f"{where}.approvals.role")
        if not 1 <= approvals.count <= 16:
            raise _bad("a count of 1 to 16", f"{where}.approvals.count")
    for evaluation in gate.evaluations:
        bounds = (evaluation.at_least, evaluation.at_most, evaluation.max_regression or None)
        if not evaluation.metric or all(bound is None for bound in bounds):
            raise _bad("a metric and at_least, at_most or max_regression", f"{where}.evaluations")


def _gate(told: Mapping[str, Any]) -> Gate:
    return Gate(
        tuple(told["aliases"]),
        told["load_check"],
        tuple(RequiredApprovals(**item) for item in told["approvals"]),
        tuple(RequiredEvaluation(**item) for item in told["evaluations"]),
        tuple(told["signers"]),
        told["lineage"],
    )


def _bad(wanted: str, field: str) -> InvalidArgument:
    return InvalidArgument(f"policy.{field} wants {wanted}; correct it", field=f"policy.{field}")
