"""Plans, records and moves on a running suite."""

from __future__ import annotations

import json
import threading
import zlib

import pytest
from light_site import CLOUD, EDGE, MODEL, LightSite, eventually

from sealane.client.deployments import Placeable
from sealane.errors import AlreadyExists, FailedPrecondition, SealaneError
from sealane.scheduler.v1 import deployment_service_pb2 as pb

MIB = 1 << 20


def where(site: LightSite, name: str) -> list[tuple[str, int]]:
    """Nodes of a deployment's copies, and how they stand."""
    return [(item.node.removeprefix("nodes/"), item.state) for item in site.client.deployments.get(name).placements]


def test_a_plan_names_filters_snapshot_and_what_would_do(site: LightSite) -> None:
    decision = site.client.deployments.plan(f"{MODEL}@1", latency_ms=0.001, objective="green", weights={"energy": 1.0})
    assert (decision.node, decision.binding_constraint) == ("", "latency")
    assert any("an objective of" in change.text for change in decision.changes)
    assert {item.filter for item in decision.filters} >= {"latency"}
    assert decision.snapshot.nodes == decision.snapshot.looked_at == 2 and len(decision.snapshot.digest) == 32
    task = site.client.deployments.plan_task("litert", tier="cloud")
    assert (task.node, task.variant) == (f"nodes/{CLOUD}", "task")
    assert set(task.candidates[0].terms) >= {"price", "egress", "energy", "lateness", "cold_start", "fragmentation"}


def test_what_a_decision_was_made_from_is_told_to_who_may_read_nodes(site: LightSite) -> None:
    newest = site.client.deployments.explain("camera-b")[0]
    made_from = json.loads(zlib.decompress(newest.record))
    assert {node["node"] for node in made_from["nodes"]} == {EDGE, CLOUD}
    assert made_from["demand"]["tier"] == "edge"


def test_a_copy_moves_to_a_better_place_and_no_call_fails(site: LightSite) -> None:
    client = site.client
    capacity = {node.name: node.capacity.memory_bytes for node in client.nodes.list()}
    # What takes the edge node's memory keeps the second one away from it, as long as it is there.
    client.deployments.create("greedy", f"{MODEL}@1", tier="edge", memory_bytes=capacity[f"nodes/{EDGE}"] - 700 * MIB)
    client.deployments.wait("greedy", 60)
    client.deployments.create("mover", f"{MODEL}@1", tier="edge", memory_bytes=1024 * MIB)
    client.deployments.wait("mover", 60)
    assert [node for node, _ in where(site, "mover")] == [CLOUD]
    client.deployments.delete("greedy")
    planned = client.deployments.optimize()
    (move,) = [item for item in planned.moves if item.deployment.endswith("/mover")]
    assert (move.source, move.target, move.applied) == (f"nodes/{CLOUD}", f"nodes/{EDGE}", False)
    assert planned.planned_cost < planned.cost and planned.gap < 0.02
    failures: list[str] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            try:
                client.inference.predict("mover", site.image, timeout=10.0)
            except SealaneError as error:
                failures.append(error.message)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        assert any(item.applied for item in client.deployments.optimize(1, apply=True).moves)
        moved = [(EDGE, int(pb.Placement.STATE_SERVING))]
        eventually(lambda: where(site, "mover") == moved, "the copy has moved and the old one is gone")
    finally:
        stop.set()
        caller.join()
    assert not failures
    assert client.deployments.get("mover").decision.reasons[0].startswith(f"moved from {CLOUD}, which saves ")
    client.deployments.delete("mover")


def test_many_are_placed_in_one_call_and_serve(site: LightSite) -> None:
    client, version = site.client, f"{MODEL}@1"
    items = [
        Placeable("many-edge", version, {"tier": "edge"}),
        Placeable("many-both", version, {"replicas": 2, "gang": True}),
        Placeable("many-none", version, {"accelerator": "none-has-it"}),
    ]
    edge, both, none = client.deployments.place(items)
    assert [copy.node for copy in edge.copies] == [f"nodes/{EDGE}"]
    assert sorted(copy.node for copy in both.copies) == [f"nodes/{CLOUD}", f"nodes/{EDGE}"]
    assert not none.copies and none.binding_constraint == "accelerator"
    for name in ("many-edge", "many-both"):
        client.deployments.wait(name, 60)
        client.inference.predict(name, site.image, timeout=10.0)
    with pytest.raises(AlreadyExists):
        client.deployments.place([Placeable("many-new", version), Placeable("many-edge", version)])
    with pytest.raises(FailedPrecondition) as refused:
        client.deployments.place(
            [Placeable("many-new", version), Placeable("many-no", version, items[2].demands)], gang=True
        )
    assert refused.value.metadata["constraint"] == "accelerator"
    names = {item.name.rpartition("/")[2] for item in client.deployments.list()}
    assert not names & {"many-new", "many-no"}
    for name in ("many-edge", "many-both", "many-none"):
        client.deployments.delete(name)


def test_a_higher_priority_takes_the_place_of_who_agreed_and_no_call_fails_meanwhile(site: LightSite) -> None:
    client, version = site.client, f"{MODEL}@1"
    capacity = {node.name: node.capacity.memory_bytes for node in client.nodes.list()}
    most = capacity[f"nodes/{EDGE}"] - 700 * MIB
    client.deployments.create("modest", version, memory_bytes=most, residency=["site-a"], preemptible=True)
    client.deployments.wait("modest", 60)
    client.deployments.create("urgent", version, memory_bytes=most, residency=["site-a"], priority=9)
    waiting = client.deployments.get("urgent")
    assert waiting.decision.reasons[0].startswith("takes the place of modest, of lower priority")
    client.inference.predict("modest", site.image, timeout=10.0)  # it serves until its time is over
    client.deployments.wait("urgent", 60)
    client.inference.predict("urgent", site.image, timeout=10.0)
    assert client.deployments.get("modest").decision.binding_constraint == "memory"
    client.deployments.delete("urgent")
    client.deployments.wait("modest", 60)  # there is room again
    client.deployments.delete("modest")
