"""Projects, credentials, role bindings, quotas, sessions, trusted issuers; secrets move out of the accounts."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BOOTSTRAP = "admin"


def upgrade() -> None:
    """Create the tables and move what the accounts held."""
    _rights()
    _sessions()
    _issuers()
    _move()


def _rights() -> None:
    op.create_table(
        "projects",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_table(
        "credentials",
        sa.Column("account", sa.String, primary_key=True),
        sa.Column("credential_id", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("expire_time", sa.Float, nullable=False),
    )
    op.create_table(
        "role_bindings",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("binding_id", sa.String, primary_key=True),
        sa.Column("member", sa.String, nullable=False, index=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("model_prefix", sa.String, nullable=False),
        sa.Column("platform", sa.Boolean, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_table(
        "quotas",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("requests_per_second", sa.Float, nullable=False),
        sa.Column("bytes_per_second", sa.BigInteger, nullable=False),
        sa.Column("concurrent_requests", sa.Integer, nullable=False),
    )


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("token_hash", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False, index=True),
        sa.Column("client_id", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("scopes", sa.String, nullable=False),
        sa.Column("key_thumbprint", sa.String, nullable=False),
        sa.Column("certificate_thumbprint", sa.String, nullable=False),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("expire_time", sa.Float, nullable=False),
        sa.Column("tokens", sa.Text, nullable=False),
    )
    op.create_table(
        "used_ids",
        sa.Column("identifier", sa.String, primary_key=True),
        sa.Column("until", sa.Float, nullable=False, index=True),
    )


def _issuers() -> None:
    op.create_table(
        "trusted_issuers",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("issuer_id", sa.String, primary_key=True),
        sa.Column("issuer", sa.String, nullable=False),
        sa.Column("audience", sa.String, nullable=False),
        sa.Column("jwks_uri", sa.String, nullable=False),
        sa.Column("jwks", sa.Text, nullable=False),
        sa.Column("rules", sa.Text, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_table(
        "federated_subjects",
        sa.Column("issuer_name", sa.String, primary_key=True),
        sa.Column("subject", sa.String, primary_key=True),
        sa.Column("until", sa.Float, nullable=False),
    )


def _move() -> None:
    connection = op.get_bind()
    op.add_column("accounts", sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()))
    accounts = sa.table("accounts", *map(sa.column, ("project", "account_id", "secret_hash", "create_time")))
    columns = ("account", "credential_id", "kind", "value", "create_time", "expire_time")
    credentials = sa.table("credentials", *map(sa.column, columns))
    projects = sa.table("projects", sa.column("project"), sa.column("create_time"))
    bound = ("project", "binding_id", "member", "role", "model_prefix", "platform", "create_time")
    bindings = sa.table("role_bindings", *map(sa.column, bound))
    first: dict[str, float] = {}
    for row in connection.execute(sa.select(accounts)).all():
        name = f"projects/{row.project}/serviceAccounts/{row.account_id}"
        first[row.project] = min(first.get(row.project, row.create_time), row.create_time)
        connection.execute(
            credentials.insert().values(
                account=name,
                credential_id=secrets.token_hex(8),
                kind="secret",
                value=row.secret_hash,
                create_time=row.create_time,
                expire_time=0.0,
            )
        )
        if row.account_id == _BOOTSTRAP:
            connection.execute(
                bindings.insert().values(
                    project=row.project,
                    binding_id=secrets.token_hex(8),
                    member=name,
                    role="admin",
                    model_prefix="",
                    platform=True,
                    create_time=row.create_time,
                )
            )
    for project, created in first.items():
        connection.execute(projects.insert().values(project=project, create_time=created))
    op.drop_column("accounts", "secret_hash")
