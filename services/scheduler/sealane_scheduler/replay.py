"""Records of what a decision was made from, and the decision made of one again. Pure."""

from __future__ import annotations

import json
import zlib

from sealane_scheduler import transcript
from sealane_scheduler.columns import NodeTable, Snapshot
from sealane_scheduler.decision import Decision
from sealane_scheduler.placement import Question, decide


def record(question: Question, nodes: Snapshot) -> bytes:
    """All that a decision depends on, compressed; a few hundred bytes for a node.

    Args:
        question: what was asked.
        nodes: the whole fleet as it was.
    """
    plain = {
        "version": nodes.version,
        "seed": question.seed,
        "demand": transcript.of_demand(question.demand),
        "variants": [transcript.of_variant(variant) for variant in question.variants],
        "nodes": [transcript.of_node(node) for node in nodes.nodes()],
    }
    return zlib.compress(transcript.canonical(plain))


def replay(content: bytes) -> Decision:
    """The decision that a record leads to; equal to the one that was made, `seen.digest` included."""
    plain = json.loads(zlib.decompress(content))
    variants = tuple(transcript.variant_of(variant) for variant in plain["variants"])
    question = Question(transcript.demand_of(plain["demand"]), variants, plain["seed"])
    table = NodeTable((transcript.node_of(node) for node in plain["nodes"]), version=plain["version"])
    return decide(question, table.snapshot())
