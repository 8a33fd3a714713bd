"""Deployments that the compatible protocols make: replaced without a gap, and nobody else's are touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio
import sqlalchemy as sa
from test_fleet import VERSION, A, World, facts, row

from sealane.clock import ManualClock
from sealane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from sealane.records import tables
from sealane.records.tables import Actor
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane_scheduler import cluster, present
from sealane_scheduler.cluster import Copy
from sealane_scheduler.ensembles import Ensembles
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.served_models import Change, ServedModels, Wanted, model_name
from sealane_scheduler.store import EnsembleRow

MODEL = "projects/p/models/m"


class Versions:
    """A registry with versions 1 to 3 of every model of the project."""

    def version(self, name: str) -> model_pb.Version:
        if not name.endswith(("/1", "/2", "/3")):
            raise NotFound(f"{name} does not exist")
        version = model_pb.Version()
        version.CopyFrom(VERSION)
        version.name = name
        version.variants[0].name = f"{name}/variants/litert"
        return version

    def latest(self, model: str, count: int) -> list[model_pb.Version]:
        return [self.version(f"{model}/versions/{number}") for number in (3, 2, 1)][:count]


class Site:
    """Served models on a cluster whose nodes load at once, unless told that a version cannot be loaded."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.broken: set[str] = set()
        registry = cast(RegistryPort, Versions())
        self.chains = Ensembles(world.records, world.controller)
        self.rules = ServedModels(world.records, world.controller, self.chains, registry, world.clock)
        self.seen: list[set[str]] = []

    async def apply(self, *wanted: Wanted, origin: str = "reload-config", **change: object) -> list[str]:
        plain: dict[str, object] = {
            "replace_all": origin == "reload-config", "remove": (), "may_deploy": lambda model: True, **change
        }  # fmt: skip
        asked = Change(
            "p", origin, wanted, actor=Actor("ops", "p", "r"), deadline=self.world.clock.monotonic() + 1e6, **plain
        )  # type: ignore[arg-type]
        task = asyncio.create_task(self.rules.apply(asked))
        while not task.done():
            await asyncio.sleep(0.01)
            self.nodes_work()
        return await task

    def nodes_work(self) -> None:
        self.seen.append(self.serving())
        for item in self.world.controller.all():
            for copy in item.copies:
                state = cluster.FAILED if item.row.deployment in self.broken else cluster.SERVING
                self.world.controller.report(copy.row.node, item.row.name, Copy(copy.row, state, "cannot be read"))

    def serving(self) -> set[str]:
        return {
            item.row.deployment for item in self.world.controller.all() if item.serving(self.world.fleet)
        }  # fmt: skip


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    world = World(tmp_path, ManualClock())
    world.fleet.connect("cloud-1", facts("cloud", "eu-1", "internal"), "")
    world.fleet.connect("edge-1", facts("edge", "site-a"), "")
    yield Site(world)
    world.database.close()


def wanted(name: str, *versions: int, **more: object) -> Wanted:
    return Wanted(name, MODEL, versions, **more)  # type: ignore[arg-type]


async def test_each_version_is_a_deployment_of_its_own_with_its_labels(site: Site) -> None:
    made = await site.apply(wanted("camera", 1, 2, labels={"stable": 1, "canary": 2, "old": 1}))
    assert [name.rpartition("/")[2] for name in made] == ["camera-v1", "camera-v2"]
    rows = {item.row.deployment: item.row for item in site.world.controller.all()}
    assert {row.served_name for row in rows.values()} == {"camera"}
    assert present.labels_of(rows["camera-v1"]) == ["old", "stable"]
    assert rows["camera-v2"].model_version == f"{MODEL}/versions/2"


async def test_the_latest_version_is_meant_where_none_is_named(site: Site) -> None:
    await site.apply(wanted("camera"))
    assert site.serving() == {"camera-v3"}
    await site.apply(Wanted("camera", MODEL, latest=2))
    assert site.serving() == {"camera-v3", "camera-v2"}


async def test_the_old_version_goes_when_the_new_one_serves_and_not_before(site: Site) -> None:
    await site.apply(wanted("camera", 1))
    site.seen.clear()
    await site.apply(wanted("camera", 2))
    assert site.serving() == {"camera-v2"}
    assert all(site.seen), "there was a moment without any version"


async def test_where_the_new_one_cannot_be_loaded_nothing_has_changed(site: Site) -> None:
    await site.apply(wanted("camera", 1, labels={"stable": 1}))
    site.broken = {"camera-v2"}
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        await site.apply(wanted("camera", 2, labels={"stable": 2}))
    (item,) = site.world.controller.all()
    assert (item.row.deployment, item.row.labels) == ("camera-v1", "stable")


async def test_a_list_replaces_all_that_it_made_and_nothing_else(site: Site) -> None:
    await site.world.create(A)
    await site.apply(wanted("kept"), origin="repository")
    await site.apply(wanted("one", 1), wanted("two", 1))
    await site.apply(wanted("two", 1))
    assert {item.row.deployment for item in site.world.controller.all()} == {"a", "kept-v3", "two-v1"}
    await site.apply()
    assert {item.row.deployment for item in site.world.controller.all()} == {"a", "kept-v3"}


async def test_names_of_other_deployments_are_refused(site: Site) -> None:
    await site.world.create(A)
    await site.apply(wanted("kept"), origin="repository")
    for name in ("a", "kept", "kept-v3"):
        with pytest.raises(FailedPrecondition, match="made otherwise"):
            await site.apply(wanted(name, 1))
    with pytest.raises(FailedPrecondition, match="made otherwise"):
        await site.apply(origin="repository", remove=("a",))
    with pytest.raises(InvalidArgument, match="twice"):
        await site.apply(wanted("x", 1), wanted("x", 2))


async def test_a_deployment_cannot_take_a_name_that_is_served(site: Site) -> None:
    await site.apply(wanted("camera", 1))
    with pytest.raises(AlreadyExists, match="camera exists"):
        await site.world.create(row("camera"))


async def test_unloading_takes_away_what_was_loaded(site: Site) -> None:
    await site.apply(wanted("camera"), origin="repository")
    await site.apply(origin="repository", remove=("camera",))
    assert not list(site.world.controller.all())
    with pytest.raises(NotFound, match="not loaded"):
        await site.apply(origin="repository", remove=("camera",))


async def test_versions_and_labels_that_are_not_there(site: Site) -> None:
    with pytest.raises(NotFound):
        await site.apply(wanted("camera", 9))
    with pytest.raises(FailedPrecondition, match="label 'stable' is for version 2"):
        await site.apply(wanted("camera", 1, labels={"stable": 2}))
    assert not list(site.world.controller.all())


OTHER = "projects/p/models/other"


async def test_a_name_keeps_its_model_while_it_is_served(site: Site) -> None:
    await site.apply(wanted("camera", 1))
    for origin in ("reload-config", "repository"):
        with pytest.raises(FailedPrecondition, match=r"another model|made otherwise"):
            await site.apply(Wanted("camera", OTHER, (1,)), origin=origin)
    assert site.serving() == {"camera-v1"}


async def test_a_name_is_the_id_of_no_other_model_that_is_deployed(site: Site) -> None:
    await site.world.create(A)  # of model m
    with pytest.raises(FailedPrecondition, match="id of another model"):
        await site.apply(Wanted("m", OTHER, (1,)))


async def test_a_name_that_others_own_is_not_taken_by_who_may_not_see_it(site: Site) -> None:
    await site.apply(Wanted("mnist", OTHER, (1,)))
    with pytest.raises(NotFound, match="mnist is not yours"):
        await site.apply(wanted("mnist", 3), may_deploy=lambda name: name == "m")
    with pytest.raises(FailedPrecondition, match="another model"):
        await site.apply(wanted("mnist", 3), may_deploy=lambda name: name in ("m", "mnist"))
    assert site.serving() == {"mnist-v1"}


async def chain_over(site: Site, deployment: str) -> None:
    message = pb.Ensemble(model_versions=[f"{MODEL}/versions/1"], models=["m"])
    message.steps.add(deployment=deployment)
    chain = EnsembleRow("p", "pipe", message.SerializeToString(), site.world.clock.now(), "e")
    await site.world.records.write(lambda store: store.add_ensemble(chain))
    site.chains.add(chain)


async def test_what_a_chain_needs_does_not_go(site: Site) -> None:
    await site.apply(wanted("camera", 1))
    await chain_over(site, "camera-v1")
    for change in ((), (wanted("camera", 2),)):
        with pytest.raises(FailedPrecondition, match="part of the chain pipe"):
            await site.apply(*change)
    assert site.serving() == {"camera-v1"}
    with pytest.raises(FailedPrecondition, match="made otherwise"):
        await site.apply(wanted("camera", 1), wanted("pipe", 1))


async def test_a_chain_is_not_served_by_another_model_of_that_name(site: Site) -> None:
    await site.apply(wanted("camera", 1))
    await chain_over(site, "camera-v1")
    (chained,) = site.chains.all()
    assert list(site.chains.nodes(chained))
    item = site.world.controller.get("projects/p/deployments/camera-v1")
    assert item is not None
    item.row = replace(item.row, model_version=f"{OTHER}/versions/1")
    assert not site.chains.nodes(chained) and site.chains.state(chained) == "PENDING"
    assert site.chains.served_by(chained.members) == []


async def test_a_name_means_the_new_version_only_when_it_serves(site: Site) -> None:
    await site.apply(wanted("camera", 1, labels={"stable": 1}))
    named: list[set[str]] = []
    work = site.nodes_work

    def look() -> None:
        named.append({item.row.deployment for item in site.world.controller.all() if item.row.served_name})
        work()

    site.nodes_work = look  # type: ignore[method-assign]
    await site.apply(wanted("camera", 2, labels={"stable": 2}))
    assert {"camera-v1"} in named and set() not in named
    assert site.serving() == {"camera-v2"}


async def test_a_call_that_is_cut_off_leaves_nothing(site: Site) -> None:
    await site.apply(wanted("camera", 1))
    site.nodes_work = lambda: None  # type: ignore[method-assign]
    task = asyncio.create_task(site.apply(wanted("camera", 2)))
    while len(list(site.world.controller.all())) < 2:
        await asyncio.sleep(0.005)
    inner = [item for item in asyncio.all_tasks() if "ServedModels.apply" in repr(item)]
    assert len(inner) == 1
    inner[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {item.row.deployment for item in site.world.controller.all()} == {"camera-v1"}


async def test_what_a_dead_process_was_about_to_serve_is_taken_back(site: Site) -> None:
    await site.apply(wanted("camera", 1))
    left = replace(row("camera-v2"), origin="reload-config")
    await site.world.create(left)
    again = ServedModels(site.world.records, site.world.controller, site.chains, cast(RegistryPort, Versions()),
                         site.world.clock)  # fmt: skip
    await again.recover()
    assert {item.row.deployment for item in site.world.controller.all()} == {"camera-v1"}
    await site.world.create(left)
    await site.apply(wanted("camera", 1, 2))
    assert site.serving() == {"camera-v1", "camera-v2"}


async def test_moving_a_label_is_in_the_audit_log(site: Site) -> None:
    await site.apply(wanted("camera", 1, 2, labels={"stable": 1}))
    await site.apply(wanted("camera", 1, 2, labels={"stable": 2}))

    def read(connection: sa.Connection) -> list[tuple[str, str]]:
        events = tables.audit
        rows = connection.execute(sa.select(events.c.action, events.c.resource))
        return [(row.action, row.resource.rpartition("/")[2]) for row in rows]

    told = await asyncio.wrap_future(site.world.database.read(read))
    assert told.count(("ServeUnderName", "camera-v1")) == 2
    assert told.count(("ServeUnderName", "camera-v2")) == 2


async def test_a_caller_limited_to_some_models_neither_deploys_nor_removes_others(site: Site) -> None:
    await site.apply(wanted("camera", 1))
    with pytest.raises(NotFound, match="not yours to deploy"):
        await site.apply(wanted("other", 1), may_deploy=lambda model: False)
    await site.apply(may_deploy=lambda model: False)
    assert site.serving() == {"camera-v1"}


async def test_nothing_is_left_where_no_worker_can_serve(site: Site) -> None:
    for node in ("cloud-1", "edge-1"):
        state = site.world.fleet.get(node)
        assert state is not None
        state.facts.runtimes.clear()  # type: ignore[attr-defined]
    with pytest.raises(FailedPrecondition, match="no worker can serve camera-v1"):
        await site.apply(wanted("camera", 1))
    assert not list(site.world.controller.all())


def test_models_are_named_by_their_id_or_in_full() -> None:
    assert model_name("p", "camera", "") == "projects/p/models/camera"
    assert model_name("p", "camera", "digits") == "projects/p/models/digits"
    assert model_name("p", "camera", "projects/p/models/digits") == "projects/p/models/digits"
    with pytest.raises(NotFound):
        model_name("p", "camera", "projects/q/models/digits")
    with pytest.raises(InvalidArgument):
        model_name("p", "camera", "/models/digits/1")
