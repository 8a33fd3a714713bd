"""What deployments and jobs refer to in the registry. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane_scheduler import present
from sealane_scheduler.jobs import ENDED
from sealane_scheduler.registry_port import version_of
from sealane_scheduler.store import DeployedRow, EnsembleRow, JobRow
from sealane_scheduler.tasks import KINDS

#: How long the inputs of a job that has ended are kept, in seconds: what it measured can be measured again.
KEPT_SECONDS = 30 * 86_400.0


def collect(
    deployments: Iterable[DeployedRow],
    chains: Iterable[EnsembleRow],
    jobs: Iterable[JobRow],
    since: float,
    files: Mapping[str, Collection[str]] | None = None,
) -> list[model_pb.Use]:
    """What is in use, by holder.

    A job that has ended keeps its inputs for a while, but not the version that it was about: otherwise nobody could
    reject a version because of what a job found.

    Args:
        deployments: all of them.
        chains: all of them.
        jobs: at least those that have not ended, and those that ended at `since` or later.
        since: seconds since 1970; jobs that ended before it keep nothing.
        files: digests that jobs with many tasks read and made, by the job's name.
    """
    uses = [_of_deployment(row) for row in deployments]
    uses += [_of_chain(row) for row in chains]
    uses += [_of_job(row, files or {}) for row in jobs if row.state not in ENDED or row.update_time >= since]
    return sorted((use for use in uses if use.versions or use.artifacts), key=lambda use: use.holder)


def _of_deployment(row: DeployedRow) -> model_pb.Use:
    return model_pb.Use(holder=row.name, versions=[row.model_version], aliases=[row.alias] if row.alias else [])


def _of_chain(row: EnsembleRow) -> model_pb.Use:
    return model_pb.Use(holder=row.name, versions=sorted(set(present.chain(row, "PENDING").ensemble.model_versions)))


def _of_job(row: JobRow, files: Mapping[str, Collection[str]]) -> model_pb.Use:
    job = present.job(row)
    use = model_pb.Use(holder=row.name)
    if row.kind in KINDS:
        digests = set(files.get(row.name, ()))
        version = present.subject(job)
    else:
        digests = {job.optimise.calibration_sha256, job.optimise.test_sha256} - {""}
        version = job.check.version or version_of(job.optimise.source_variant)
    if row.state not in ENDED:
        use.versions.append(version)
    use.artifacts.extend(f"projects/{row.project}/artifacts/{digest}" for digest in sorted(digests))
    return use
