"""Routing in a running suite: what workers say of their load, keys that keep to one, links that are measured."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest
from light_site import EDGE, LightSite, eventually, running

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.loads import LOAD, Load
from sealane_local import plan

pytestmark = pytest.mark.stack
INFER, STATISTICS = (f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStatistics"))
OTHER = "edge-2"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A deployment with a copy on each of two edge workers."""
    second = replace(plan.EDGE, node=OTHER)
    with running(tmp_path_factory.mktemp("routing"), others=(second,)) as made:
        made.client.deployments.create("pair", made.push(), tier="edge", replicas=2)
        made.client.deployments.wait("pair", 30)
        eventually(lambda: serving(made) == {EDGE, OTHER}, "each serves a copy")
        yield made


def serving(site: LightSite) -> set[str]:
    """Nodes whose copy serves."""
    placements = site.client.deployments.get("pair").placements
    return {item.node.removeprefix("nodes/") for item in placements if item.state == item.STATE_SERVING}


def at(site: LightSite, node: str, method: str, body: bytes) -> tuple[bytes, grpc.Call]:
    """One raw call to a worker's own listener."""
    sent = [("authorization", f"Bearer {site.client.token('sealane-inference')}")]
    with site.channel(node) as channel:
        answer: tuple[bytes, grpc.Call] = channel.unary_unary(method).with_call(body, timeout=10, metadata=sent)
    return answer


def ran(site: LightSite, node: str) -> int:
    """Inferences that a worker has run."""
    answer, _ = at(site, node, STATISTICS, oip.ModelStatisticsRequest(name="pair").SerializeToString())
    (found,) = oip.ModelStatisticsResponse.FromString(answer).model_stats
    return found.inference_stats.success.count


def test_a_direct_answer_says_how_busy_the_worker_is(site: LightSite) -> None:
    body = openinference.encode_request(InferenceCall(Target("pair"), dict(site.image))).SerializeToString()
    _, call = at(site, EDGE, INFER, body)
    told = dict(call.trailing_metadata() or ())
    load = Load.parse(str(told[LOAD]))
    assert load is not None
    assert load.calls == 0 and 0.0 < load.service < load.spent < 10.0
    _, call = at(site, EDGE, STATISTICS, b"")
    assert LOAD not in dict(call.trailing_metadata() or ()), "no model ran"


@pytest.mark.parametrize("via", ["gateway", "direct"])
def test_calls_of_one_key_go_to_one_worker_and_others_to_both(site: LightSite, via: str) -> None:
    before = {node: ran(site, node) for node in (EDGE, OTHER)}
    for _ in range(20):
        site.client.inference.predict("pair", site.image, affinity=f"visitor-{via}", via=via)  # type: ignore[arg-type]
    grown = {node: ran(site, node) - before[node] for node in before}
    assert sorted(grown.values()) == [0, 20]
    # One after the other they may all go where it is faster; several at once need both.
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: site.client.inference.predict("pair", site.image, via=via), range(90)))  # type: ignore[arg-type]
    assert all(ran(site, node) - before[node] - grown[node] > 0 for node in before)


def test_the_link_of_a_worker_is_measured_by_what_it_carries(site: LightSite) -> None:
    large = {"image": np.repeat(site.rows[:1], 8000, axis=0)}
    assert large["image"].nbytes > 3 << 19

    def measured() -> bool:
        for _ in range(4):
            site.client.inference.predict("pair", large, timeout=20.0)
        found = {node.name.removeprefix("nodes/"): node for node in site.client.nodes.list()}
        return all(found[node].link.down_bytes_per_second > 1e5 and found[node].rtt_ms > 0 for node in (EDGE, OTHER))

    eventually(measured, "both say how fast their links are", 30.0)
