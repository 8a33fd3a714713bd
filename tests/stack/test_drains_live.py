"""Nodes that are cordoned and drained on a running suite, under calls."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from light_site import CAMERA_A, CAMERA_B, EDGE, Callers, LightSite, eventually, running

from sealane.errors import DeadlineExceeded
from sealane.scheduler.v1 import node_service_pb2 as pb
from sealane_local.plan import WorkerPlan

pytestmark = pytest.mark.stack
OTHER = "edge-2"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """The suite with a second worker at the site of the first."""
    other = WorkerPlan(OTHER, "edge", "site-a", "restricted", 0.02, runtimes=("litert",))
    with running(tmp_path_factory.mktemp("drains"), others=(other,)) as site:
        site.deploy_cameras(site.push())
        yield site


def command(site: LightSite, *arguments: str) -> dict[str, object]:
    """What the command prints as JSON."""
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "from sealane.cli.main import main; main()",
            *arguments,
            "--data",
            str(site.data),
            "-o",
            "json",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    told: dict[str, object] = json.loads(ran.stdout)
    return told


def where(site: LightSite, deployment: str) -> set[str]:
    return {node for node, _ in site.places(deployment)}


def test_a_node_gets_empty_under_calls_and_none_fails(site: LightSite) -> None:
    nodes = site.client.nodes
    (first,) = where(site, CAMERA_A)
    assert {first} | where(site, CAMERA_B) <= {EDGE, OTHER}
    (second,) = {EDGE, OTHER} - {first}
    with Callers(site) as callers:
        eventually(lambda: callers.answers > 20, "there is traffic")
        told = command(site, "nodes", "drain", first, "--wait", "--timeout", "40s")
        assert (told["admission"], told.get("held_copies", 0)) == ("ADMISSION_DRAINED", 0)
        assert where(site, CAMERA_A) == where(site, CAMERA_B) == {second}
        before = callers.answers
        eventually(lambda: callers.answers > before + 20, "both are answered")
    assert callers.failures == []
    assert {node.name: node.admission for node in nodes.list()}[f"nodes/{first}"] == pb.Node.ADMISSION_DRAINED
    # It takes nothing while it is held, and takes again once it is open.
    nodes.cordon(second)
    site.client.deployments.create("pinned", "digits@1", data_class="restricted", residency=["site-a"])
    assert site.client.deployments.get("pinned").decision.binding_constraint == "draining"
    assert nodes.uncordon(first).admission == pb.Node.ADMISSION_OPEN
    site.client.deployments.wait("pinned", 30)
    assert where(site, "pinned") == {first}
    site.client.deployments.delete("pinned")
    nodes.uncordon(second)


def test_what_can_go_nowhere_stays_over_a_restart_until_the_deadline(site: LightSite) -> None:
    nodes = site.client.nodes
    (holder,) = where(site, CAMERA_A)
    (other,) = {EDGE, OTHER} - {holder}
    nodes.cordon(other)
    nodes.drain(holder)

    def stuck() -> list[tuple[str, str]]:
        copies = nodes.get(holder).copies
        return [(copy.deployment.rpartition("/")[2], copy.binding_constraint) for copy in copies]

    eventually(lambda: stuck() == [(CAMERA_A, "residency")], "camera B has left, camera A cannot")
    with pytest.raises(DeadlineExceeded, match=r"1 copies and 0 tasks are left.*site-a"):
        nodes.wait_drained(holder, 0.5)
    epoch = site.places(CAMERA_A)
    site.crash("scheduler")
    eventually(lambda: stuck() == [(CAMERA_A, "residency")], "it is still drained")
    assert site.places(CAMERA_A) == epoch
    eventually(lambda: bool(site.client.inference.predict(CAMERA_A, site.image)), "camera A is answered all the time")
    site.stack.child(holder).crash()
    site.stack.wait_for_lanes()
    assert nodes.get(holder).admission == pb.Node.ADMISSION_DRAINING
    told = command(site, "nodes", "drain", holder, "--deadline", "1s", "--wait")
    assert told["admission"] == "ADMISSION_DRAINED"
    assert site.client.deployments.get(CAMERA_A).decision.binding_constraint == "draining"
    for node in (holder, other):
        command(site, "nodes", "uncordon", node)
    for camera in (CAMERA_A, CAMERA_B):
        site.client.deployments.wait(camera, 30)


def test_tasks_end_on_a_node_that_is_drained_and_others_do_the_rest(site: LightSite) -> None:
    rows = site.data / "rows.npz"
    np.savez(rows, image=site.rows)
    site.client.datasets.push(rows, "rows")
    job = site.client.jobs.batch("digits@1", "rows", variant="litert-int8", rows_per_task=5)
    eventually(lambda: any(node.held_tasks for node in site.client.nodes.list()), "it has begun")
    drained = next(node.name.rpartition("/")[2] for node in site.client.nodes.list() if node.held_tasks)
    site.client.nodes.drain(drained, seconds=20.0)
    ended = site.client.jobs.wait(job.name, 60)
    assert ended.tasks.succeeded == ended.tasks.total == 72
    site.client.nodes.wait_drained(drained, 30)
    site.client.nodes.uncordon(drained)
    actions = [event.action for event in site.client.audit.list("scheduler")]
    assert {"DrainNode", "UncordonNode", "CordonNode"} <= set(actions)
