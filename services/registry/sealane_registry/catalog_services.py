"""Wires everything about models, datasets and policies."""

from __future__ import annotations

from sealane.clock import Clock
from sealane.records.transactions import Transactions
from sealane.registry.v1 import (
    dataset_service_pb2,
    model_service_pb2,
    policy_service_pb2,
    signature_service_pb2,
    variant_service_pb2,
)
from sealane.rpc.dispatch import Served
from sealane_registry.aliases import AliasRules
from sealane_registry.catalog import CatalogRules
from sealane_registry.config import Config
from sealane_registry.dataset_servicer import DatasetServicer
from sealane_registry.datasets import DatasetRules
from sealane_registry.facts import facts_of
from sealane_registry.inspector import Inspector
from sealane_registry.limits import Defaults, LimitRules
from sealane_registry.model_servicer import ModelServicer, Rules
from sealane_registry.policy_servicer import PolicyServicer
from sealane_registry.reviews import ReviewRules
from sealane_registry.signature_servicer import SignatureServicer
from sealane_registry.signing import SignatureRules
from sealane_registry.store import Store
from sealane_registry.variant_servicer import VariantServicer
from sealane_registry.watch import Watches


def defaults_of(config: Config) -> Defaults:
    """What every project may store."""
    return Defaults(config.max_project_bytes, config.max_models, config.max_versions)


def catalog_services(
    records: Transactions[Store], clock: Clock, inspector: Inspector, defaults: Defaults
) -> list[Served]:
    """Everything about models, datasets and policies."""
    watches = Watches(records)
    records.after_write(watches.announce)
    rules = Rules(
        CatalogRules(clock, defaults), AliasRules(clock, facts_of), ReviewRules(clock, facts_of), LimitRules(clock)
    )
    signatures = SignatureServicer(records, SignatureRules(clock), rules.catalog, inspector)
    made: list[tuple[object, object]] = [
        (ModelServicer(records, rules, inspector, watches), model_service_pb2),
        (VariantServicer(records, rules.catalog, rules.reviews, inspector), variant_service_pb2),
        (DatasetServicer(records, DatasetRules(clock)), dataset_service_pb2),
        (PolicyServicer(records, rules.limits, defaults), policy_service_pb2),
        (signatures, signature_service_pb2),
    ]
    return [
        Served(servicer, next(iter(module.DESCRIPTOR.services_by_name.values())))  # type: ignore[attr-defined]
        for servicer, module in made
    ]
