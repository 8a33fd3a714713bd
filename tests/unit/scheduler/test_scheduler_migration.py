"""A database of before becomes one of today, and its jobs go on."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

import sealane_scheduler
from sealane.records.migrate import migrate
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane_scheduler import present
from sealane_scheduler.store_sql import SqlStore

MIGRATIONS = Path(sealane_scheduler.__file__).parent / "migrations"
SPEC = pb.OptimiseSpec(source_variant="projects/p/models/m/versions/1/variants/v")


def until(connection: sa.Connection, revision: str) -> None:
    """The schema as it was at a revision."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)

    def upgrade(present, _context):  # type: ignore[no-untyped-def]  # Alembic's callback
        return script._upgrade_revs(revision, present)

    with EnvironmentContext(config, script, fn=upgrade) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()


def test_jobs_of_before_optimise_and_deployments_go_by_no_alias() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        until(connection, "0003")
        connection.execute(
            sa.text("INSERT INTO jobs VALUES ('p', 'j', 'PENDING', :spec, 1.0, 2.0, 'e', 1, 'n', 0, 0, '', '', :none)"),
            {"spec": SPEC.SerializeToString(), "none": b""},
        )
        connection.execute(
            sa.text("INSERT INTO deployments VALUES ('p', 'd', 'v', :none, :none, 1.0, 2.0, 'e', '', '', '')"),
            {"none": b""},
        )
        migrate(connection, MIGRATIONS)
        store = SqlStore(connection)
        (job,), (deployment,) = store.jobs("p", "", 10), store.deployments()
        assert (job.kind, job.rounds, deployment.alias) == ("optimise", 0, "")
        assert present.job(job).optimise == SPEC
    engine.dispose()
