"""What is known of a version, read from its rows: what gates decide by."""

from __future__ import annotations

from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane_registry import policy
from sealane_registry.gates import Measured, VariantFacts, VersionFacts, figures_of
from sealane_registry.policy import FIELDS, Policy
from sealane_registry.rows import Scope, VariantRow
from sealane_registry.signing import blocked
from sealane_registry.store import Store

#: Recorder of what a job measured.
SCHEDULER = "spiffe://sealane/service/scheduler"


def facts_of(store: Store, scope: Scope) -> VersionFacts:
    """Of a version that is there; nothing is known of another."""
    row = store.version(scope)
    if row is None:
        return VersionFacts(f"{scope.model}@{scope.number}", "REJECTED", "it is gone")
    demands = policy.from_json(store.policy(scope.project).content)
    lineage = model_pb.Version.FromString(row.content).lineage
    return VersionFacts(
        f"{row.model}@{row.number}",
        row.state,
        row.state_reason,
        row.publisher,
        tuple((item.approver, item.roles) for item in row.approvals),
        (*lineage.datasets, *lineage.dataset_digests),
        tuple(_variant(item, demands) for item in store.variants([scope])[scope]),
    )


def _variant(row: VariantRow, demands: Policy) -> VariantFacts:
    check = None if row.load_check is None else variant_pb.LoadCheck.FromString(row.load_check)
    return VariantFacts(
        row.variant,
        None if check is None else check.loadable,
        "" if check is None else check.message,
        tuple(_measured(variant_pb.Measurement.FromString(item)) for item in row.measurements),
        tuple(name for item in row.signatures if (name := demands.key_named(item.key_id))),
        blocked(demands, row),
    )


def _measured(message: variant_pb.Measurement) -> Measured:
    fields = {name: float(getattr(message, name)) for name in FIELDS}
    if not message.rows:
        fields.pop("accuracy")
    return Measured(
        figures_of(fields, dict(message.metrics)),
        message.dataset,
        message.device_class,
        message.rows,
        message.recorder == SCHEDULER,
    )
