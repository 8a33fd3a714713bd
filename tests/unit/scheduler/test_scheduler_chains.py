"""Chains at the scheduler: checked when they are made, routed where their models are, kept from losing one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from test_fleet import VERSION, World, facts

from sealane.clock import ManualClock
from sealane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.type.v1 import tensor_pb2
from sealane_scheduler import cluster, routes
from sealane_scheduler.cluster import Copy
from sealane_scheduler.ensembles import Chained, Ensembles
from sealane_scheduler.store import DeploymentRow, EnsembleRow

X, Y = (tensor_pb2.TensorSpec(name=name, datatype="FP32", shape=[-1, 4]) for name in "xy")


def member(deployment: str, model: str, **demand: object) -> DeploymentRow:
    version = model_pb.Version()
    version.CopyFrom(VERSION)
    version.name = f"projects/p/models/{model}/versions/1"
    version.signatures.add(name="serving_default", inputs=[X], outputs=[Y])
    message = pb.Demand(**demand)  # type: ignore[arg-type]
    return DeploymentRow(
        "p", deployment, version.name, message.SerializeToString(), version.SerializeToString(), 0.0, 0.0, "e"
    )


def ensemble(*deployments: str) -> pb.Ensemble:
    message = pb.Ensemble()
    for place, deployment in enumerate(deployments):
        message.steps.add(deployment=deployment, inputs={"x": f"t{place}"}, outputs={"y": f"t{place + 1}"})
    return message


class Site:
    """Deployments `first` at the edge and `second` in the cloud, and the chain of both."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chains = Ensembles(world.records, world.controller)

    async def chain(self, name: str = "both", *deployments: str) -> Chained:
        checked = self.chains.check("p", ensemble(*(deployments or ("first", "second"))))
        row = EnsembleRow("p", name, checked.SerializeToString(), self.world.clock.now(), "e")
        await self.world.records.write(lambda store: store.add_ensemble(row))
        return self.chains.add(row)

    def endpoints(self, chained: Chained) -> list[str]:
        return [item.node for item in routes.chain_route(chained, self.chains, self.world.fleet).endpoints]


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    world = World(tmp_path, ManualClock())
    world.fleet.connect("cloud-1", facts("cloud", "eu-1", "internal"), "")
    world.fleet.connect("edge-1", facts("edge", "site-a"), "")
    await world.create(member("first", "a", tier_preference=pb.TIER_PREFERENCE_EDGE))
    await world.create(member("second", "b", tier_preference=pb.TIER_PREFERENCE_CLOUD))
    yield Site(world)
    world.database.close()


async def test_what_callers_send_and_get_is_found_out(site: Site) -> None:
    chained = await site.chain()
    assert [(spec.name, spec.datatype) for spec in chained.message.signature.inputs] == [("t0", "FP32")]
    assert [spec.name for spec in chained.message.signature.outputs] == ["t2"]
    assert list(chained.message.models) == ["a", "b"]


async def test_what_cannot_run_is_not_taken(site: Site) -> None:
    with pytest.raises(NotFound, match="third"):
        site.chains.check("p", ensemble("first", "third"))
    with pytest.raises(NotFound):
        site.chains.check("q", ensemble("first", "second"))
    wrong = ensemble("first")
    wrong.steps[0].outputs["z"] = "t9"
    with pytest.raises(InvalidArgument, match="no output 'z'"):
        site.chains.check("p", wrong)


async def test_it_is_routed_to_workers_that_serve_all_of_its_models(site: Site) -> None:
    chained = await site.chain()
    site.world.serve()
    assert site.endpoints(chained) == [] and site.chains.state(chained) == "SERVING"
    together = await site.chain("alone", "first", "first")
    assert site.endpoints(together) == site.world.endpoints("first")
    assert [item.row.deployment for item in site.chains.served_by(together.members)] == ["alone"]
    everything = (*chained.members, "projects/p/deployments/x")
    assert {item.row.deployment for item in site.chains.served_by(everything)} == {"alone", "both"}


async def test_it_stands_as_the_model_that_is_furthest_from_serving(site: Site) -> None:
    chained = await site.chain()
    assert site.chains.state(chained) == "PREPARING"
    item = site.world.controller.get("projects/p/deployments/first")
    assert item is not None
    for copy in item.copies:
        site.world.controller.report(copy.row.node, item.row.name, Copy(copy.row, cluster.SERVING))
    assert site.chains.state(chained) == "PREPARING"
    site.world.serve()
    assert site.chains.state(chained) == "SERVING"


async def test_its_models_cannot_be_deleted_under_it(site: Site) -> None:
    chained = await site.chain()
    with pytest.raises(FailedPrecondition, match="part of the chain both"):
        site.chains.refuse_if_needed("projects/p/deployments/first")
    await site.chains.delete(chained.row.name, "", lambda store: store.drop_ensemble("p", "both"))
    site.chains.refuse_if_needed("projects/p/deployments/first")
    assert not site.chains.all()


async def test_it_shares_its_names_with_deployments_and_outlives_a_restart(site: Site) -> None:
    chained = await site.chain()
    with pytest.raises(AlreadyExists):
        await site.world.add(member("both", "a"))
    with pytest.raises(AlreadyExists):
        await site.world.records.write(lambda store: store.add_ensemble(EnsembleRow("p", "first", b"", 0.0, "e")))
    again = Ensembles(site.world.records, site.world.controller)
    await again.load()
    assert [item.row for item in again.all()] == [chained.row]
    table = routes.table(site.world.controller, again)
    assert {item.deployment.rpartition("/")[2] for item in table.routes} == {"first", "second", "both"}
