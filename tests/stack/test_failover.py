"""The edge dies, comes back, and is cut off (DEMO-4)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from light_site import ACCURATE, CAMERA_A, CAMERA_B, CLOUD, EDGE, MODEL, Background, LightSite, eventually, running
from orphans import descendants

from sealane.client import Client, StaticToken
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import NotFound, SealaneError, Unauthenticated, Unavailable

pytestmark = pytest.mark.stack
LINK = f"link-{EDGE}"


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A suite whose edge hangs on a cable, and is dead only after a minute of silence."""
    with running(tmp_path_factory.mktemp("linked"), linked=True, edge_lost_after=60.0) as site:
        version = site.push()
        site.deploy_cameras(version)
        site.client.deployments.create(ACCURATE, version, objective="accuracy")
        site.client.deployments.wait(ACCURATE, 30)
        yield site
        site.stack.child(LINK).start()


class Watcher(Background):
    """Predicts for camera B all the time, and looks where camera A is."""

    def __init__(self, site: LightSite) -> None:
        super().__init__(self._predict, self._look)
        self._site = site
        self.answers: list[tuple[float, float]] = []
        self.failures: list[str] = []
        self.places_of_a: set[str] = set()

    def _predict(self) -> None:
        while not self.stopped.is_set():
            started = time.monotonic()
            try:
                self._site.client.inference.predict(CAMERA_B, self._site.image, timeout=10.0)
            except SealaneError as error:
                self.failures.append(f"{error.kind}: {error.message}")
            else:
                self.answers.append((started, time.monotonic()))

    def _look(self) -> None:
        while not self.stopped.wait(0.05):
            self.places_of_a |= {node for node, _ in self._site.places(CAMERA_A)}

    def first_answer_after(self, moment: float) -> float:
        """Seconds from `moment` to the first answer of a call made after it."""
        return next(ended for started, ended in self.answers if started > moment) - moment


def serving(site: LightSite, deployment: str) -> set[str]:
    """Nodes that serve a deployment now."""
    placements = site.client.deployments.get(deployment).placements
    return {item.node.removeprefix("nodes/") for item in placements if item.state == item.STATE_SERVING}


def ran_at_edge(site: LightSite, deployment: str) -> int:
    """Inferences that the edge worker has run since it was started."""
    sent = [("authorization", f"Bearer {site.client.token('sealane-inference')}")]
    body = oip.ModelStatisticsRequest(name=deployment).SerializeToString()
    with site.channel(EDGE) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")
        (found,) = oip.ModelStatisticsResponse.FromString(method(body, timeout=5, metadata=sent)).model_stats
    return found.inference_stats.success.count


def test_edge_dies_under_traffic_and_comes_back(linked: LightSite) -> None:
    before = {camera: linked.places(camera) for camera in (CAMERA_A, CAMERA_B)}
    assert {node for places in before.values() for node, _ in places} == {EDGE}
    with Watcher(linked) as watcher:
        eventually(lambda: len(watcher.answers) > 20, "there is traffic")
        linked.stack.child(EDGE).kill()
        killed = time.monotonic()
        eventually(lambda: CLOUD in serving(linked, CAMERA_B), "the cloud serves camera B")
        with pytest.raises(Unavailable, match="site-a") as refused:
            linked.client.inference.predict(CAMERA_A, linked.image, timeout=2.0)
        assert refused.value.metadata["constraint"] == "residency"
        with pytest.raises(Unavailable) as direct:
            linked.client.inference.predict(CAMERA_A, linked.image, timeout=2.0, via="direct")
        assert direct.value.metadata["constraint"] == "residency"
        linked.stack.child(EDGE).start()
        for camera in before:
            eventually(
                lambda camera=camera: linked.places(camera) == before[camera], f"{camera} is as before, epoch included"
            )
        for camera in before:
            linked.client.deployments.wait(camera, 20)
        eventually(
            lambda: bool(linked.client.inference.predict(CAMERA_A, linked.image, timeout=2.0)), "camera A is answered"
        )
        back = ran_at_edge(linked, CAMERA_B)
        eventually(
            lambda: ran_at_edge(linked, CAMERA_B) >= back + 20, "calls for camera B are routed to the edge again"
        )
    assert watcher.failures == []
    assert watcher.first_answer_after(killed) <= 3.0
    assert watcher.places_of_a == {EDGE}, "camera A never left its site"


def test_cut_off_and_started_there(linked: LightSite) -> None:
    token = linked.client.token("sealane-inference")
    expected = linked.client.inference.predict(CAMERA_A, {"image": linked.rows[:20]})["probabilities"]
    linked.stack.child(EDGE).kill()
    linked.stack.child(LINK).kill()
    linked.stack.child(EDGE).start()
    with Client(linked.endpoints, trust_bundle=linked.trust, credentials=StaticToken(token)) as camera:
        model = camera.inference.at(linked.stack.worker_address(EDGE), f"{EDGE}.node.sealane", CAMERA_A)
        eventually(lambda: bool(model.predict(linked.image, timeout=2.0)), "camera A is answered at its site")
        answer = model.predict({"image": linked.rows[:20]})["probabilities"]
        assert (answer == expected).all(), "the version that was verified before the cut"
        other = camera.inference.at(linked.stack.worker_address(EDGE), f"{EDGE}.node.sealane", ACCURATE)
        with pytest.raises(NotFound):
            other.predict(linked.image, timeout=2.0)
    strangers = StaticToken(linked.client.token("sealane-registry"))
    with Client(linked.endpoints, trust_bundle=linked.trust, credentials=strangers) as stranger:
        model = stranger.inference.at(linked.stack.worker_address(EDGE), f"{EDGE}.node.sealane", CAMERA_A)
        with pytest.raises(Unauthenticated):
            model.predict(linked.image, timeout=2.0)
    with pytest.raises(Unavailable):
        linked.client.inference.predict(CAMERA_A, linked.image, timeout=2.0)
    assert linked.client.inference.predict(CAMERA_B, linked.image)["probabilities"].shape == (1, 10)
    linked.stack.child(LINK).start()
    linked.stack.wait_for_lanes(30)
    for camera_id in (CAMERA_A, CAMERA_B):
        eventually(lambda name=camera_id: serving(linked, name) == {EDGE}, f"{camera_id} is on {EDGE} again")
    eventually(lambda: bool(linked.client.inference.predict(CAMERA_A, linked.image, timeout=2.0)), "A through the link")


def test_a_dead_edge_that_was_cut_off_keeps_its_model(tmp_path: Path) -> None:
    """It works on while it is away; its place is given to it again before it hears that it has none."""
    with running(tmp_path / "site", linked=True, edge_lost_after=2.0) as site:
        site.deploy_cameras(site.push())
        edge = site.stack.child(EDGE).pid
        assert edge is not None
        before = set(descendants(edge))
        for epoch in (2, 3):
            site.stack.child(LINK).kill()
            eventually(lambda: site.places(CAMERA_A) == set(), "the dead node has lost its copy")
            site.stack.child(LINK).start()
            site.client.deployments.wait(CAMERA_A, 20)
            assert site.places(CAMERA_A) == {(EDGE, epoch)}
            assert set(descendants(edge)) <= before, "no model was loaded again"
            eventually(lambda: bool(site.client.inference.predict(CAMERA_A, site.image, timeout=2.0)), "A is answered")


def test_a_scheduler_that_starts_again_has_no_model_loaded_again(linked: LightSite) -> None:
    workers = [linked.stack.child(node).pid for node in (EDGE, CLOUD)]
    places = {name: linked.places(name) for name in (CAMERA_A, CAMERA_B, ACCURATE)}
    before = {pid for worker in workers if worker is not None for pid in descendants(worker)}
    linked.crash("scheduler")
    for name, where in places.items():
        assert linked.places(name) == where
        eventually(lambda name=name: bool(linked.client.inference.predict(name, linked.image, timeout=2.0)), name)
    assert {pid for worker in workers if worker is not None for pid in descendants(worker)} == before


def test_a_dead_edge_that_returns_gets_a_new_epoch(tmp_path: Path) -> None:
    with running(tmp_path / "site", edge_lost_after=2.0) as site:
        site.deploy_cameras(site.push())
        site.stack.child(EDGE).kill()
        eventually(lambda: site.places(CAMERA_A) == set(), "the dead node has lost its copy")
        assert site.client.deployments.get(CAMERA_A).decision.binding_constraint == "residency"
        eventually(lambda: {node for node, _ in site.places(CAMERA_B)} == {CLOUD}, "camera B is on the cloud alone")
        site.stack.child(EDGE).start()
        site.client.deployments.wait(CAMERA_A, 20)
        assert site.places(CAMERA_A) == {(EDGE, 2)}
        assert site.client.deployments.get(CAMERA_A).model_version.endswith(f"{MODEL}/versions/1")
        eventually(lambda: bool(site.client.inference.predict(CAMERA_A, site.image, timeout=2.0)), "A is answered")
