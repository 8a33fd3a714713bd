"""Jobs of many tasks on a real suite: batch inference, evaluation, benchmark; paused, cancelled, spread, explained."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from light_site import LIGHT, LightSite, eventually, running

from sealane.cli import main
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound
from sealane.scheduler.v1 import job_service_pb2 as pb

pytestmark = pytest.mark.stack
ROWS = 360


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with running(tmp_path_factory.mktemp("jobs")) as site:
        site.push()
        folder = tmp_path_factory.mktemp("rows")
        for name, part in (("a", slice(0, 250)), ("b", slice(250, ROWS))):
            with np.load(LIGHT / "test.npz") as arrays:
                np.savez(folder / f"{name}.npz", x=arrays["x"][part].astype(np.float32), y=arrays["y"][part])
        site.client.datasets.push(folder, "digits-test")
        yield site


def labels() -> np.ndarray:
    with np.load(LIGHT / "test.npz") as arrays:
        return arrays["y"]


def test_a_batch_gives_what_one_call_after_another_gives(site: LightSite) -> None:
    job = site.client.jobs.batch("digits@latest", "digits-test", variant="litert-float", rows_per_task=50)
    assert job.tasks.total == 5 + 3 and job.batch.inputs == {"image": "x"}
    ended = site.client.jobs.wait(job.name, 60)
    assert ended.tasks.succeeded == 8 and ended.progress == 1.0
    tasks = list(site.client.jobs.tasks(job.name))
    spans = [(task.first_row, task.rows) for task in tasks]
    assert spans == [(0, 50), (50, 50), (100, 50), (150, 50), (200, 50), (250, 50), (300, 50), (350, 10)]
    said = np.concatenate([part["probabilities"] for part in site.client.jobs.results(job.name)])
    assert said.shape == (ROWS, 10)
    accuracy = json.loads((LIGHT / "metrics.json").read_text())["variants"]["litert-float"]["accuracy"]
    assert np.mean(said.argmax(axis=1) == labels()) == pytest.approx(accuracy, abs=1e-4)
    # Both workers took part: tasks are not planned before a place is free.
    nodes = {site.client.jobs.task(job.name, index).attempts[-1].node for index in range(8)}
    assert nodes == {"nodes/edge-1", "nodes/cloud-1"}


def test_an_evaluation_is_in_the_registry(site: LightSite) -> None:
    job = site.client.jobs.evaluate("digits@latest", "digits-test")
    ended = site.client.jobs.wait(job.name, 60)
    measured = {item.variant_id: item.measurement for item in ended.results}
    known = json.loads((LIGHT / "metrics.json").read_text())["variants"]
    assert set(measured) == {"litert-float", "litert-int8"}
    for name, measurement in measured.items():
        assert measurement.accuracy == pytest.approx(known[name]["accuracy"], abs=1e-4)
        assert measurement.rows == ROWS
        assert 0 < measurement.latency_p50_us <= measurement.latency_p99_us
        assert measurement.utilisation > 0 and measurement.memory_bytes > 0
    version = site.client.models.get_version("digits@latest")
    kept = {item.name.rpartition("/")[2]: [each.runtime for each in item.measurements] for item in version.variants}
    assert "litert" in kept["litert-int8"]
    log = site.client.jobs.task(job.name, 0).attempts[-1].log
    assert f"of {ROWS} rows are right" in log


def test_a_benchmark_is_in_the_registry(site: LightSite) -> None:
    job = site.client.jobs.benchmark("digits@latest", variants=["litert-int8"], seconds=0.05)
    (result,) = site.client.jobs.wait(job.name, 120).results
    measurement = result.measurement
    assert measurement.rows_per_second > 0 and measurement.threads >= 1
    assert measurement.batches[0].batch_size == 1


def test_pause_resume_cancel(site: LightSite) -> None:
    jobs = site.client.jobs
    job = jobs.batch("digits@latest", "digits-test", rows_per_task=1, max_parallel=1)
    eventually(lambda: jobs.get(job.name).tasks.succeeded > 0, "the job has begun")
    assert jobs.pause(job.name).state == pb.Job.STATE_PAUSED
    eventually(lambda: jobs.get(job.name).tasks.running == 0, "what ran has ended")
    done = jobs.get(job.name).tasks.succeeded
    other = jobs.batch("digits@latest", "digits-test", rows_per_task=180)
    jobs.wait(other.name, 60)  # others go on
    assert jobs.get(job.name).tasks.succeeded == done < ROWS
    assert jobs.resume(job.name).state in (pb.Job.STATE_RUNNING, pb.Job.STATE_PENDING)
    eventually(lambda: jobs.get(job.name).tasks.succeeded > done, "it goes on")
    assert jobs.get(job.name).HasField("estimated_end_time")
    assert jobs.cancel(job.name).state == pb.Job.STATE_CANCELLED
    states = {task.state for task in jobs.tasks(job.name)}
    assert states == {pb.Task.STATE_SUCCEEDED, pb.Task.STATE_CANCELLED}
    with pytest.raises(FailedPrecondition):
        list(jobs.results(job.name))


def test_rows_that_do_not_fit_fail_the_job_and_say_why(site: LightSite, tmp_path: Path) -> None:
    np.savez(tmp_path / "flat.npz", x=np.zeros((4, 64), np.float32))
    site.client.datasets.push(tmp_path / "flat.npz", "flat")
    job = site.client.jobs.batch("digits@latest", "flat")
    with pytest.raises(FailedPrecondition, match=r"shape|takes"):
        site.client.jobs.wait(job.name, 60)
    (task,) = site.client.jobs.tasks(job.name)
    assert task.state == pb.Task.STATE_FAILED and task.failures == 1, "a fault of the data is not tried again"


def test_what_cannot_be_is_refused_at_once(site: LightSite) -> None:
    jobs = site.client.jobs
    with pytest.raises(NotFound):
        jobs.batch("digits@latest", "no-such-dataset")
    with pytest.raises(NotFound):
        jobs.batch("digits@latest", "digits-test", variant="nope")
    with pytest.raises(InvalidArgument):
        jobs.batch("digits@latest", "digits-test", rows_per_task=-1)
    with pytest.raises(InvalidArgument):
        jobs.batch("digits@latest", "digits-test", gang=3, max_parallel=2)
    with pytest.raises(InvalidArgument):
        jobs.benchmark("digits@latest", seconds=1e9)
    check = jobs.check("digits@latest")
    with pytest.raises(FailedPrecondition) as told:
        jobs.pause(check.name)
    assert told.value.reason == "NOT_PAUSABLE"
    jobs.wait(check.name, 60)


def test_restricted_rows_stay_where_they_may_be(site: LightSite) -> None:
    job = site.client.jobs.batch(
        "digits@latest", "digits-test", rows_per_task=60, data_class="restricted", residency=["site-a"]
    )
    site.client.jobs.wait(job.name, 60)
    tasks = [site.client.jobs.task(job.name, task) for task in range(job.tasks.total)]
    assert {attempt.node for task in tasks for attempt in task.attempts} == {"nodes/edge-1"}


def test_the_same_request_is_the_same_job(site: LightSite) -> None:
    request = "3f8b9c8e-5f0a-4a52-9f6a-3f0c6f3a9d11"
    first = site.client.jobs.batch("digits@latest", "digits-test", rows_per_task=180, request_id=request)
    again = site.client.jobs.batch("digits@latest", "digits-test", rows_per_task=180, request_id=request)
    assert first.name == again.name
    site.client.jobs.wait(first.name, 60)


def test_the_command(site: LightSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        code = main.run(["jobs", *arguments, "--data", str(site.data)])
        told = capsys.readouterr()
        assert code == 0, told
        return told.out + told.err

    told = run("batch", "digits@latest", "digits-test", "--rows-per-task", "120", "--input", "image=x", "--wait")
    assert "4 of 4 done" in told
    job = re.search(r"j-[0-9a-f-]+", told)
    assert job is not None
    assert run("tasks", job[0]).count("succeeded") == 4
    assert "succeeded" in run("task", job[0], "0")
    run("results", job[0], str(tmp_path / "out.npz"))
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["probabilities"].shape == (ROWS, 10)
    assert main.run(["jobs", "batch", "digits@latest", "digits-test", "--input", "x", "--data", str(site.data)]) != 0
    assert "INPUT=ARRAY" in capsys.readouterr().err


def test_what_a_job_reads_cannot_be_deleted_while_it_may_go_on(site: LightSite, tmp_path: Path) -> None:
    np.savez(tmp_path / "kept.npz", image=site.rows[:50] + 1)
    site.client.datasets.push(tmp_path / "kept.npz", "kept")
    jobs, datasets = site.client.jobs, site.client.datasets
    job = jobs.batch("digits@latest", "kept", rows_per_task=1, max_parallel=1)
    jobs.pause(job.name)

    def holds() -> bool:
        """Whether the registry was told that the job uses something: it is told a moment after the change."""
        records = sqlite3.connect(f"file:{site.data / 'registry' / 'registry.db'}?mode=ro", uri=True)
        try:
            query = "select count(*) from uses where holder = ? and kind = 'artifact'"
            return bool(records.execute(query, (job.name,)).fetchone()[0])
        finally:
            records.close()

    eventually(holds, "the registry knows what the job reads")
    with pytest.raises(FailedPrecondition) as told:
        datasets.delete("kept")
    assert told.value.reason == "DATASET_IN_USE"
    jobs.cancel(job.name)
    eventually(lambda: not holds(), "an ended job holds what it made alone")
    datasets.delete("kept")
