"""Policies and quotas as proto messages, and back."""

from __future__ import annotations

from collections.abc import Iterable

from sealane.errors import InvalidArgument
from sealane.registry.v1 import policy_service_pb2 as pb
from sealane.rpc.times import time_of
from sealane_registry.limits import Defaults
from sealane_registry.policy import Gate, Policy, RequiredApprovals, RequiredEvaluation, from_json, signer_key
from sealane_registry.rows import PolicyRow, QuotaRow, UsageRow

_FIELDS = ("allow_executable_formats", "signing", "signer_keys", "required_signers", "gates")


def policy(project: str, row: PolicyRow) -> pb.Policy:
    """A project's policy."""
    found = from_json(row.content)
    message = pb.Policy(
        name=f"projects/{project}/policy",
        allow_executable_formats=found.allow_executable_formats,
        signing=pb.SigningRequirement.Value(f"SIGNING_REQUIREMENT_{found.signing}"),
        signer_keys=[
            pb.SignerKey(name=key.name, public_key=key.pem.encode(), key_id=key.key_id) for key in found.signer_keys
        ],
        required_signers=found.required_signers,
        gates=[_gate(gate) for gate in found.gates],
        etag=row.etag,
    )
    if row.update_time:
        message.update_time.CopyFrom(time_of(row.update_time))
    return message


def changed(present: Policy, message: pb.Policy, mask: Iterable[str]) -> Policy:
    """`present` with the fields of `message` that the mask names.

    Raises:
        InvalidArgument: the mask names what cannot be changed, or a field means nothing.
    """
    wanted = set(mask) or {"*"}
    if unknown := wanted - {*_FIELDS, "*"}:
        raise InvalidArgument(
            f"update_mask names {sorted(unknown)[0]!r}; there are {', '.join(_FIELDS)}", field="update_mask"
        )

    def has(field: str) -> bool:
        return field in wanted or "*" in wanted

    word = pb.SigningRequirement.Name(message.signing).removeprefix("SIGNING_REQUIREMENT_")
    return Policy(
        message.allow_executable_formats if has("allow_executable_formats") else present.allow_executable_formats,
        (word if message.signing else "UNSIGNED") if has("signing") else present.signing,
        tuple(signer_key(key.name, key.public_key) for key in message.signer_keys)
        if has("signer_keys")
        else present.signer_keys,
        tuple(message.required_signers) if has("required_signers") else present.required_signers,
        tuple(_gate_of(gate) for gate in message.gates) if has("gates") else present.gates,
    )


def quota(project: str, row: QuotaRow, used: UsageRow, pending: int, defaults: Defaults) -> pb.StorageQuota:
    """What a project stores and may store."""
    return pb.StorageQuota(
        name=f"projects/{project}/storageQuota",
        max_bytes=row.max_bytes or defaults.max_bytes,
        max_models=row.max_models or defaults.max_models,
        max_versions=row.max_versions or defaults.max_versions,
        used_bytes=used.bytes + pending,
        used_models=used.models,
    )


def _gate(gate: Gate) -> pb.Gate:
    return pb.Gate(
        aliases=gate.aliases,
        load_check=gate.load_check,
        approvals=[pb.RequiredApprovals(role=item.role, count=item.count) for item in gate.approvals],
        evaluations=[_evaluation(item) for item in gate.evaluations],
        signers=gate.signers,
        lineage=gate.lineage,
    )


def _evaluation(item: RequiredEvaluation) -> pb.RequiredEvaluation:
    message = pb.RequiredEvaluation(
        metric=item.metric,
        dataset=item.dataset,
        device_class=item.device_class,
        min_rows=item.min_rows,
        by_job=item.by_job,
        every_variant=item.every_variant,
        max_regression=item.max_regression,
    )
    if item.at_least is not None:
        message.at_least = item.at_least
    if item.at_most is not None:
        message.at_most = item.at_most
    return message


def _gate_of(message: pb.Gate) -> Gate:
    return Gate(
        tuple(message.aliases),
        message.load_check,
        tuple(RequiredApprovals(item.role, item.count) for item in message.approvals),
        tuple(_evaluation_of(item) for item in message.evaluations),
        tuple(message.signers),
        message.lineage,
    )


def _evaluation_of(message: pb.RequiredEvaluation) -> RequiredEvaluation:
    return RequiredEvaluation(
        message.metric,
        message.at_least if message.HasField("at_least") else None,
        message.at_most if message.HasField("at_most") else None,
        message.dataset,
        message.device_class,
        message.min_rows,
        message.by_job,
        message.every_variant,
        message.max_regression,
    )
