"""Models that tasks run: one process for the tasks of a variant, gone a while after the last and at a stop."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from sealane.registry.v1 import variant_service_pb2 as registry
from sealane_worker.engine import Engine
from sealane_worker.pool import Pool, PooledModel
from sealane_worker.preparation import Preparation
from sealane_worker.spec import ModelSpec
from sealane_worker.task_models import TaskModels

MODEL = "projects/p/models/m/versions/1/variants/"


def variant(name: str = "v") -> registry.Variant:
    return registry.Variant(name=MODEL + name, digest="sha256:" + "ab" * 32)


@dataclass
class Prepared:
    """Gives every variant the same files."""

    asked: list[str] = field(default_factory=list)

    def spec(self, wanted: registry.Variant, project: str, grant: str) -> ModelSpec:
        self.asked.append(wanted.name)
        return ModelSpec("litert", Path("model"))


class Model:
    """A model that knows whether it was closed."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.closed = spec, False

    def close(self) -> None:
        self.closed = True


class Models:
    """A pool that loads nothing."""

    def __init__(self) -> None:
        self.loaded: list[Model] = []

    def add(self, spec: ModelSpec) -> PooledModel:
        self.loaded.append(Model(spec))
        return cast(PooledModel, self.loaded[-1])


class Site:
    def __init__(self) -> None:
        self.prepared, self.pool = Prepared(), Models()
        self.idle = 0
        self.models = TaskModels(cast(Preparation, self.prepared), cast(Pool, self.pool), self._is_idle)

    def _is_idle(self) -> None:
        self.idle += 1

    def run(self, wanted: registry.Variant) -> None:
        with self.models.model(wanted, "p", "grant"):
            pass

    @property
    def open(self) -> int:
        return sum(not model.closed for model in self.pool.loaded)


@pytest.fixture
def site() -> Site:
    return Site()


class Files:
    """Files that know whether they are needed."""

    held = True

    def take(self) -> None:
        self.held = True

    def give_back(self) -> None:
        self.held = False


def test_tasks_that_follow_each_other_load_once(site: Site) -> None:
    before = threading.active_count()
    for _ in range(50):
        site.run(variant())
    assert len(site.pool.loaded) == 1
    assert threading.active_count() <= before + 1  # not one that waits for each task


def test_variants_of_the_same_files_are_two_models(site: Site) -> None:
    site.run(variant("onnxruntime"))
    site.run(variant("openvino"))
    assert site.prepared.asked == [MODEL + "onnxruntime", MODEL + "openvino"]


def test_it_goes_once_nobody_used_it_for_a_while_and_not_before(site: Site) -> None:
    with site.models.model(variant(), "p", "grant"):
        site.models.tidy(0.0)
        assert site.open == 1
    site.models.tidy(1000.0)
    assert site.open == 1
    site.models.tidy(0.0)
    assert site.open == 0


def test_what_else_was_kept_for_tasks_goes_with_the_last_model(site: Site) -> None:
    site.run(variant("a"))
    with site.models.model(variant("b"), "p", "grant"):
        site.models.tidy(0.0)
        assert (site.open, site.idle) == (1, 0)
    site.models.tidy(0.0)
    assert (site.open, site.idle) == (0, 1)


def test_a_worker_that_stops_ends_models_that_no_deployment_has(int8_spec: ModelSpec) -> None:
    engine, files = Engine(), Files()
    model = engine.pool.add(replace(int8_spec, files=files))
    assert files.held
    engine.close()
    assert (model.box, files.held) == (None, False)
