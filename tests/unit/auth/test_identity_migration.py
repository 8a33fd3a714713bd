"""A database of version 1 becomes one of today, and its clients notice nothing."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

import sealane_auth
from sealane.records.migrate import migrate
from sealane_auth import account_sql, issuer_sql, session_sql
from sealane_auth.accounts import hash_secret
from sealane_auth.rights import grants_of
from sealane_auth.store_sql import SqlStore

MIGRATIONS = Path(sealane_auth.__file__).parent / "migrations"
SECRET = "s" * 43


def first_version(connection: sa.Connection) -> None:
    """The schema as version 1 left it."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)

    def upgrade(revision, _context):  # type: ignore[no-untyped-def]  # Alembic's callback
        return script._upgrade_revs("0001", revision)

    with EnvironmentContext(config, script, fn=upgrade) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()


def test_accounts_of_version_1_keep_secret_and_scopes() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        first_version(connection)
        for account, scopes in (("admin", "admin infer"), ("camera", "infer")):
            connection.execute(
                sa.text("INSERT INTO accounts VALUES ('p', :a, :c, :h, :s, 5.0, 'e')"),
                {"a": account, "c": f"{account}@p", "h": hash_secret(SECRET), "s": scopes},
            )
        migrate(connection, MIGRATIONS)
        store = SqlStore(connection)
        camera, admin = (store.accounts.account_by_client(f"{name}@p") for name in ("camera", "admin"))
        assert camera is not None and admin is not None
        assert camera.scopes == ("infer",) and grants_of(store, camera).scopes == {"infer"}
        (credential,) = store.accounts.credentials(camera.name)
        assert (credential.kind, credential.value) == ("secret", hash_secret(SECRET))
        assert {"fleet", "keys", "projects"} <= grants_of(store, admin).scopes
        assert [project.project for project in store.accounts.projects("", 10)] == ["p"]
    engine.dispose()


def test_migrations_make_the_tables_that_the_code_uses() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        migrate(connection, MIGRATIONS)
        inspector = sa.inspect(connection)
        for metadata in (account_sql.metadata, session_sql.metadata, issuer_sql.metadata):
            for table in metadata.sorted_tables:
                made = {column["name"]: column for column in inspector.get_columns(table.name)}
                assert set(made) == {column.name for column in table.columns}, table.name
                for column in table.columns:
                    assert str(made[column.name]["type"]) == str(column.type.compile(engine.dialect)), column
    engine.dispose()
