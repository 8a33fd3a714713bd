"""Projects, accounts, credentials, role bindings and quotas on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa

from sealane.errors import AlreadyExists
from sealane_auth.account_store import Account, Binding, Credential, Project

metadata = sa.MetaData()
projects = sa.Table(
    "projects",
    metadata,
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("create_time", sa.Float, nullable=False),
)
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("account_id", sa.String, primary_key=True),
    sa.Column("client_id", sa.String, nullable=False, unique=True),
    sa.Column("scopes", sa.String, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Column("etag", sa.String, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
)
credentials = sa.Table(
    "credentials",
    metadata,
    sa.Column("account", sa.String, primary_key=True),
    sa.Column("credential_id", sa.String, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Column("expire_time", sa.Float, nullable=False),
)
role_bindings = sa.Table(
    "role_bindings",
    metadata,
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("binding_id", sa.String, primary_key=True),
    sa.Column("member", sa.String, nullable=False, index=True),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("model_prefix", sa.String, nullable=False),
    sa.Column("platform", sa.Boolean, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
)
quotas = sa.Table(
    "quotas",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("requests_per_second", sa.Float, nullable=False),
    sa.Column("bytes_per_second", sa.BigInteger, nullable=False),
    sa.Column("concurrent_requests", sa.Integer, nullable=False),
)


class SqlAccounts:
    """Implements :class:`sealane_auth.account_store.AccountStore` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add_project(self, project: Project) -> None:
        """Add; a taken id raises AlreadyExists."""
        if self.project(project.project) is not None:
            raise AlreadyExists(f"project {project.project} exists; choose another id", field="project_id")
        self._connection.execute(projects.insert().values(**asdict(project)))

    def project(self, project: str) -> Project | None:
        """A project."""
        row = self._connection.execute(sa.select(projects).where(projects.c.project == project)).one_or_none()
        return None if row is None else Project(**row._mapping)

    def projects(self, after: str, limit: int) -> list[Project]:
        """Projects by id, strictly after `after`."""
        query = sa.select(projects).where(projects.c.project > after).order_by(projects.c.project).limit(limit)
        return [Project(**row._mapping) for row in self._connection.execute(query)]

    def put_account(self, account: Account) -> None:
        """Add, or replace the one of the same name."""
        self._connection.execute(accounts.delete().where(_named(account.project, account.account_id)))
        self._connection.execute(accounts.insert().values(asdict(account) | {"scopes": " ".join(account.scopes)}))

    def account(self, project: str, account_id: str) -> Account | None:
        """An account, deleted ones included."""
        return self._one(_named(project, account_id))

    def account_by_client(self, client_id: str) -> Account | None:
        """The account of a client id, None for a deleted one."""
        return self._one((accounts.c.client_id == client_id) & ~accounts.c.deleted)

    def accounts(self, project: str, after: str, limit: int) -> list[Account]:
        """Accounts of a project that are not deleted, by id, strictly after `after`."""
        wanted = (accounts.c.project == project) & (accounts.c.account_id > after) & ~accounts.c.deleted
        rows = self._connection.execute(sa.select(accounts).where(wanted).order_by(accounts.c.account_id).limit(limit))
        return [_account(row) for row in rows]

    def put_credential(self, credential: Credential) -> None:
        """Add a credential."""
        self._connection.execute(credentials.insert().values(**asdict(credential)))

    def credentials(self, account: str) -> list[Credential]:
        """All of an account, oldest first."""
        order = (credentials.c.create_time, credentials.c.credential_id)
        rows = self._connection.execute(sa.select(credentials).where(credentials.c.account == account).order_by(*order))
        return [Credential(**row._mapping) for row in rows]

    def delete_credentials(self, account: str, credential_id: str = "") -> int:
        """Delete one, or all of an account; how many there were."""
        wanted = credentials.c.account == account
        if credential_id:
            wanted &= credentials.c.credential_id == credential_id
        return self._connection.execute(credentials.delete().where(wanted)).rowcount

    def put_binding(self, binding: Binding) -> None:
        """Add a binding."""
        self._connection.execute(role_bindings.insert().values(**asdict(binding)))

    def bindings(self, project: str, member: str = "") -> list[Binding]:
        """Bindings of a project, or of one member, by id."""
        wanted = role_bindings.c.project == project
        if member:
            wanted &= role_bindings.c.member == member
        rows = self._connection.execute(sa.select(role_bindings).where(wanted).order_by(role_bindings.c.binding_id))
        return [Binding(**row._mapping) for row in rows]

    def platform_bindings(self) -> list[Binding]:
        """Bindings for the platform, of all projects, by project and id."""
        order = (role_bindings.c.project, role_bindings.c.binding_id)
        rows = self._connection.execute(sa.select(role_bindings).where(role_bindings.c.platform).order_by(*order))
        return [Binding(**row._mapping) for row in rows]

    def delete_binding(self, project: str, binding_id: str) -> Binding | None:
        """Delete one; what it was."""
        wanted = (role_bindings.c.project == project) & (role_bindings.c.binding_id == binding_id)
        deleted = role_bindings.delete().where(wanted).returning(*role_bindings.c)
        row = self._connection.execute(deleted).one_or_none()
        return None if row is None else Binding(**row._mapping)

    def put_quota(self, name: str, quota: tuple[float, int, int]) -> None:
        """Set the quota of a project or account: requests and bytes a second, calls at once."""
        self._connection.execute(quotas.delete().where(quotas.c.name == name))
        values = dict(zip(("requests_per_second", "bytes_per_second", "concurrent_requests"), quota, strict=True))
        self._connection.execute(quotas.insert().values(name=name, **values))

    def quota(self, name: str) -> tuple[float, int, int] | None:
        """The quota of a project or account."""
        row = self._connection.execute(sa.select(quotas).where(quotas.c.name == name)).one_or_none()
        return None if row is None else (row.requests_per_second, row.bytes_per_second, row.concurrent_requests)

    def _one(self, wanted: sa.ColumnElement[bool]) -> Account | None:
        row = self._connection.execute(sa.select(accounts).where(wanted)).one_or_none()
        return None if row is None else _account(row)


def _named(project: str, account_id: str) -> sa.ColumnElement[bool]:
    return (accounts.c.project == project) & (accounts.c.account_id == account_id)


def _account(row: sa.Row[tuple[object, ...]]) -> Account:
    values = dict(row._mapping)
    values["scopes"] = tuple(str(values["scopes"]).split())
    return Account(**values)
