"""Records of what a decision was made from, and the decision made of one again. Pure."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from sealane_scheduler import transcript
from sealane_scheduler.batch import RECORDED_NODES, Basis, TableRoom, Wanted, because
from sealane_scheduler.columns import NodeTable
from sealane_scheduler.decision import Decision
from sealane_scheduler.placement import decide
from sealane_scheduler.scan import Question
from sealane_scheduler.together import place_all


def record(basis: Basis) -> bytes:
    """All that a decision depends on, compressed; a few hundred bytes for a node. Nothing of large fleets."""
    nodes = basis.nodes
    if len(nodes) > RECORDED_NODES:
        return b""
    plain = _question(basis.question) | {
        "version": nodes.version,
        "why": basis.why,
        "nodes": [transcript.of_node(node) for node in nodes.nodes()],
    }
    if basis.batch:
        members = [_question(item.question) | {"copies": item.copies} for item in basis.batch]
        plain |= {"batch": members, "member": basis.member, "copy": basis.copy}
    return zlib.compress(transcript.canonical(plain))


def replay(content: bytes) -> Decision:
    """The decision that a record leads to; equal to the one that was made, `seen.digest` included."""
    plain = json.loads(zlib.decompress(content))
    table = NodeTable((transcript.node_of(node) for node in plain["nodes"]), version=plain["version"])
    if "batch" not in plain:
        return because(decide(_asked(plain), table.snapshot()), str(plain.get("why", "")))
    wanted = [Wanted(_asked(item), item["copies"]) for item in plain["batch"]]
    placed = place_all(wanted, TableRoom(table))[int(plain["member"])]
    return placed.places[int(plain["copy"])].decision


def _question(question: Question) -> dict[str, Any]:
    return {
        "seed": question.seed,
        "demand": transcript.of_demand(question.demand),
        "variants": [transcript.of_variant(variant) for variant in question.variants],
    }


def _asked(plain: Mapping[str, Any]) -> Question:
    variants = tuple(transcript.variant_of(variant) for variant in plain["variants"])
    return Question(transcript.demand_of(plain["demand"]), variants, plain["seed"])
