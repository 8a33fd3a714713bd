"""Brings a service's schema up to date with Alembic, from the migrations inside its package."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

#: Any number that no other lock of the database has.
_MIGRATION_LOCK = 0x5EA1A4E


def migrate(connection: sa.Connection, migrations: Path) -> None:
    """Run every migration of the folder `migrations` that the database has not seen."""
    config = Config()
    config.set_main_option("script_location", str(migrations))
    script = ScriptDirectory.from_config(config)
    if connection.dialect.name == "postgresql":
        # Of several processes that start at once one migrates, the others wait and find it done.
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))

    def upgrade(revision, _context):  # type: ignore[no-untyped-def]  # Alembic's callback
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(config, script, fn=upgrade) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()


def newest(migrations: Path) -> str:
    """Revision of the schema after all migrations of a folder."""
    config = Config()
    config.set_main_option("script_location", str(migrations))
    return ScriptDirectory.from_config(config).get_current_head() or ""
