"""A chain of models on a running suite: where its models share a worker, where they do not, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from light_site import CAMERA_A, CAMERA_B, LightSite, eventually, running

from sealane.cli import main
from sealane.client import Step
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import routing_service_pb2, routing_service_pb2_grpc

CLOUDY = "cloudy"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with running(tmp_path_factory.mktemp("chains")) as site:
        version = site.push()
        site.deploy_cameras(version)
        site.client.deployments.create(CLOUDY, version, tier="cloud")
        site.client.deployments.wait(CLOUDY, 30)
        yield site


def both(one: str, other: str) -> list[Step]:
    return [
        Step(one, {"image": "left"}, {"probabilities": "p"}),
        Step(other, {"image": "right"}, {"probabilities": "q"}),
    ]


def nodes(site: LightSite, deployment: str) -> set[str]:
    """Workers that the chain is routed to."""
    request = routing_service_pb2.ResolveRouteRequest(deployment=f"projects/default/deployments/{deployment}")
    with site.channel("scheduler") as channel:
        metadata = [("authorization", f"Bearer {site.client.token('sealane-scheduler')}")]
        lease = routing_service_pb2_grpc.RoutingServiceStub(channel).ResolveRoute(request, metadata=metadata, timeout=5)
    return {endpoint.node for endpoint in lease.route.endpoints}


@pytest.mark.parametrize(("name", "members"), [("near", (CAMERA_A, CAMERA_B)), ("far", (CAMERA_A, CLOUDY))])
def test_a_chain_answers_as_its_models_do(site: LightSite, name: str, members: tuple[str, str]) -> None:
    places = [{node for node, _ in site.places(member)} for member in members]
    made = site.client.deployments.create_chain(name, both(*members))
    assert [spec.name for spec in made.ensemble.signature.inputs] == ["left", "right"]
    assert site.client.deployments.wait(name, 20).state == pb.Deployment.STATE_SERVING
    assert nodes(site, name) == places[0] & places[1]
    assert bool(nodes(site, name)) == (name == "near")
    rows = {"left": site.rows[:3], "right": site.rows[3:6]}

    def right() -> bool:
        outputs = site.client.inference.predict(name, rows)
        alone = [site.client.inference.predict(member, {"image": part})["probabilities"]
                 for member, part in zip(members, rows.values(), strict=True)]  # fmt: skip
        np.testing.assert_array_equal(outputs["p"], alone[0])
        np.testing.assert_array_equal(outputs["q"], alone[1])
        return True

    eventually(right, f"the chain {name} answers")


def test_its_models_are_kept(site: LightSite) -> None:
    site.client.deployments.create_chain("holds", both(CAMERA_A, CAMERA_B))
    with pytest.raises(FailedPrecondition, match="part of the chain"):
        site.client.deployments.delete(CAMERA_B)
    site.client.deployments.delete("holds")
    with pytest.raises(NotFound):
        site.client.deployments.get("holds")


def test_what_cannot_run_is_refused_when_it_is_made(site: LightSite) -> None:
    with pytest.raises(InvalidArgument, match="camera-b takes FP32"):
        site.client.deployments.create_chain(
            "wrong",
            [
                Step(CAMERA_A, {"image": "picture"}, {"probabilities": "p"}),
                Step(CAMERA_B, {"image": "p"}, {"probabilities": "q"}),
            ],
        )
    with pytest.raises(NotFound, match="nobody"):
        site.client.deployments.create_chain("wrong", both(CAMERA_A, "nobody"))


def test_the_command_makes_one_from_a_file_and_it_outlives_the_scheduler(
    site: LightSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chain.json"
    steps = [
        {"deployment": CAMERA_A, "inputs": {"image": "left"}, "outputs": {"probabilities": "p"}},
        {"deployment": CAMERA_B, "inputs": {"image": "right"}, "outputs": {"probabilities": "q"}},
    ]
    file.write_text(json.dumps({"steps": steps, "outputs": ["q"]}))
    data = ["--data", str(site.data)]
    assert main.run(["deployments", "chain", "by-file", str(file), "--wait", "20", *data]) == 0
    assert "camera-a, camera-b" in capsys.readouterr().out
    site.crash("scheduler")
    assert main.run(["deployments", "list", *data]) == 0
    assert "chain of 2" in capsys.readouterr().out
    rows = {"left": site.rows[:1], "right": site.rows[:1]}
    eventually(
        lambda: list(site.client.inference.predict("by-file", rows)) == ["q"], "the chain answers after the restart"
    )
    file.write_text("[1]")
    assert main.run(["deployments", "chain", "bad", str(file), *data]) != 0
