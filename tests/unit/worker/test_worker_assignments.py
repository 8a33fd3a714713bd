"""What is served follows what the scheduler wants, and survives a restart without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealane.errors import FailedPrecondition, SealaneError, Unavailable
from sealane.registry.v1 import variant_service_pb2
from sealane.scheduler.v1 import deployment_service_pb2, fleet_service_pb2
from sealane_worker import assignments as module
from sealane_worker.assignments import Assignments
from sealane_worker.box import BoxLimits
from sealane_worker.deployment import Assignment
from sealane_worker.engine import Engine
from sealane_worker.spec import ModelSpec

State = deployment_service_pb2.Placement.State
NAME = "projects/p/deployments/camera"


class Site:
    """A worker's engine and assignments on one disk, with a registry that can fail."""

    def __init__(self, spec: ModelSpec, limits: BoxLimits, path: Path) -> None:
        self.engine = Engine(limits)
        self.reports: list[fleet_service_pb2.AssignmentReport] = []
        self.failures: list[SealaneError] = []
        self._spec = spec
        self.assignments = Assignments(self.engine, self._prepare, path, self.reports.append)

    def _prepare(self, wanted: fleet_service_pb2.Assignment) -> Assignment:
        if self.failures:
            raise self.failures.pop(0)
        return Assignment(
            wanted.deployment, "projects/p/models/digits", 1, "v", wanted.variant.digest, wanted.epoch, self._spec
        )

    def states(self) -> list[str]:
        """The states reported so far, without their prefix."""
        return [State.Name(report.state).removeprefix("STATE_") for report in self.reports]

    def close(self) -> None:
        """End."""
        self.assignments.stop()
        self.engine.close()


@pytest.fixture
def site(int8_spec: ModelSpec, quick: BoxLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A started site."""
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.05)
    made = Site(int8_spec, quick, tmp_path / "assignments.json")
    made.assignments.start()
    yield made
    made.close()


def _wanted(epoch: int = 1, digest: str = "sha256:a") -> fleet_service_pb2.Assignment:
    variant = variant_service_pb2.Variant(digest=digest)
    return fleet_service_pb2.Assignment(deployment=NAME, epoch=epoch, variant=variant)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "did not come true within 10 s"
        time.sleep(0.005)


def test_serves_what_is_wanted_and_nothing_else(site: Site) -> None:
    site.assignments.apply([_wanted()])
    _until(lambda: site.states() == ["PREPARING", "SERVING"])
    assert site.reports[-1].memory_bytes > 0
    (report,) = site.assignments.reports()
    assert (report.deployment, report.epoch, report.variant_digest) == (NAME, 1, "sha256:a")
    site.assignments.apply([])
    _until(lambda: not site.engine.models())


def test_a_new_epoch_of_the_same_digest_keeps_the_healthy_process(site: Site) -> None:
    site.assignments.apply([_wanted()])
    _until(lambda: "SERVING" in site.states())
    before = site.engine.served()[0].footprint_bytes, site.engine._loaded[NAME].pooled.box.pid
    site.assignments.apply([_wanted(epoch=2)])
    _until(lambda: site.states()[-1] == "SERVING" and site.reports[-1].epoch == 2)
    assert site.engine._loaded[NAME].pooled.box.pid == before[1]
    assert site.states() == ["PREPARING", "SERVING", "SERVING"]


def test_passing_trouble_is_tried_again_and_lasting_trouble_reported(site: Site) -> None:
    site.failures = [Unavailable("registry away"), Unavailable("registry away")]
    site.assignments.apply([_wanted()])
    _until(lambda: "SERVING" in site.states())
    assert "FAILED" not in site.states()
    site.failures = [FailedPrecondition("the files are not a model; convert it again")]
    site.assignments.apply([_wanted(epoch=2, digest="sha256:b")])
    _until(lambda: site.states()[-1] == "FAILED")
    assert "convert it again" in site.reports[-1].message
    # What was served goes on being served.
    assert site.engine.model(NAME).assignment.digest == "sha256:a"


def test_a_restart_without_a_scheduler_serves_what_was_served_last(
    site: Site, int8_spec: ModelSpec, quick: BoxLimits, tmp_path: Path
) -> None:
    site.assignments.apply([_wanted(epoch=7)])
    _until(lambda: "SERVING" in site.states())
    path = tmp_path / "assignments.json"
    assert path.stat().st_mode & 0o777 == 0o600
    again = Site(int8_spec, quick, path)
    again.assignments.start()
    _until(lambda: bool(again.engine.models()))
    assert again.engine.model(NAME).assignment.epoch == 7
    again.close()


def test_the_disk_is_written_only_where_something_else_is_wanted(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "assignments.json"

    def written() -> int:
        return file.stat().st_ino

    site.assignments.apply([_wanted()])
    first = written()
    site.assignments.apply([_wanted()])
    assert written() == first
    site.assignments.apply([_wanted(epoch=2)])
    assert written() != first and '"epoch": "2"' in file.read_text()
    site.assignments.apply([])
    assert '"epoch"' not in file.read_text()


def test_a_torn_file_is_no_reason_not_to_start(int8_spec: ModelSpec, quick: BoxLimits, tmp_path: Path) -> None:
    path = tmp_path / "assignments.json"
    path.write_text('{"assignments": [{"depl')
    site = Site(int8_spec, quick, path)
    site.assignments.start()
    site.assignments.apply([_wanted()])
    _until(lambda: "SERVING" in site.states())
    site.close()


def test_what_is_served_is_told_to_whoever_tidies_up(site: Site) -> None:
    told: list[set[str]] = []
    site.assignments._tidy = told.append
    site.assignments.apply([_wanted()])
    _until(lambda: bool(told))
    assert told[-1] == {_wanted().variant.digest}


def test_a_model_that_gives_way_and_comes_back_is_told(site: Site) -> None:
    site.assignments.apply([_wanted()])
    _until(lambda: "SERVING" in site.states())
    site.engine._loaded[NAME].pooled.give_way()
    _until(lambda: not site.reports[-1].resident)
    site.engine._loaded[NAME].pooled.load(time.monotonic() + 20)
    _until(lambda: site.reports[-1].resident)
    assert site.reports[-1].memory_bytes > 10 << 20
