"""Demands, nodes and variants as JSON and back: what a decision is made from. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from sealane.security.sealing_policy import SealingPolicy
from sealane_scheduler.filters import Demand, NodeView, VariantView

_PAIRS = ("weights", "apart", "beside")
_TUPLES = ("formats", "residency", "precisions", "affinity")
_SETS = ("avoid", "resident")


def of_node(node: NodeView) -> dict[str, Any]:
    """A node; equal nodes give equal values, in the same order."""
    plain = {item.name: getattr(node, item.name) for item in fields(NodeView)}
    plain["runtimes"] = {name: sorted(node.runtimes[name]) for name in sorted(node.runtimes)}
    plain["facts"] = dict(sorted(node.facts.items()))
    return plain | {name: sorted(getattr(node, name)) for name in _SETS}


def node_of(plain: Mapping[str, Any]) -> NodeView:
    """A node again; what a later version would have added is not known to have been there."""
    known = _known(NodeView, plain)
    known["runtimes"] = {name: frozenset(formats) for name, formats in plain["runtimes"].items()}
    return NodeView(**known | {name: frozenset(plain[name]) for name in _SETS})


def of_variant(variant: VariantView) -> dict[str, Any]:
    """A variant."""
    return asdict(variant)


def variant_of(plain: Mapping[str, Any]) -> VariantView:
    """A variant again."""
    sealing: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain["sealing"].items()
    }
    return VariantView(**_known(VariantView, plain) | {"sealing": SealingPolicy(**sealing)})


def of_demand(demand: Demand) -> dict[str, Any]:
    """A demand."""
    return asdict(demand)


def demand_of(plain: Mapping[str, Any]) -> Demand:
    """A demand again."""
    known = _known(Demand, plain) | {name: tuple(plain.get(name, ())) for name in _TUPLES}
    return Demand(**known | {name: tuple((first, second) for first, second in plain.get(name, ())) for name in _PAIRS})


def canonical(plain: Mapping[str, Any]) -> bytes:
    """The same bytes for the same values."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def _known(kind: type[Demand | NodeView | VariantView], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: plain[item.name] for item in fields(kind) if item.name in plain}
