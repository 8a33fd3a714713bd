"""Trusted external issuers on SQLite and PostgreSQL."""

from __future__ import annotations

import json

import sqlalchemy as sa

from sealane.errors import AlreadyExists
from sealane_auth.issuer_store import ClaimRule, TrustedIssuer

metadata = sa.MetaData()
trusted_issuers = sa.Table(
    "trusted_issuers",
    metadata,
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("issuer_id", sa.String, primary_key=True),
    sa.Column("issuer", sa.String, nullable=False),
    sa.Column("audience", sa.String, nullable=False),
    sa.Column("jwks_uri", sa.String, nullable=False),
    sa.Column("jwks", sa.Text, nullable=False),
    sa.Column("rules", sa.Text, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
)
federated_subjects = sa.Table(
    "federated_subjects",
    metadata,
    sa.Column("issuer_name", sa.String, primary_key=True),
    sa.Column("subject", sa.String, primary_key=True),
    sa.Column("until", sa.Float, nullable=False),
)


class SqlIssuers:
    """Implements :class:`sealane_auth.issuer_store.IssuerStore` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add_issuer(self, issuer: TrustedIssuer) -> None:
        """Add; a taken id raises AlreadyExists."""
        if self.issuer(issuer.project, issuer.issuer_id) is not None:
            raise AlreadyExists(
                f"trusted issuer {issuer.issuer_id} exists; choose another id", field="trusted_issuer_id"
            )
        self._connection.execute(
            trusted_issuers.insert().values(
                project=issuer.project,
                issuer_id=issuer.issuer_id,
                issuer=issuer.issuer,
                audience=issuer.audience,
                jwks_uri=issuer.jwks_uri,
                jwks=issuer.jwks,
                rules=json.dumps([[dict(r.claims), list(r.roles), r.model_prefix] for r in issuer.rules]),
                create_time=issuer.create_time,
            )
        )

    def issuer(self, project: str, issuer_id: str) -> TrustedIssuer | None:
        """An issuer by its id."""
        found = self._all(_named(project, issuer_id))
        return found[0] if found else None

    def issuers_of(self, project: str, issuer: str) -> list[TrustedIssuer]:
        """Issuers of a project with a claim ``iss``, by id."""
        return self._all((trusted_issuers.c.project == project) & (trusted_issuers.c.issuer == issuer))

    def issuers(self, project: str, after: str, limit: int) -> list[TrustedIssuer]:
        """Issuers of a project by id, strictly after `after`."""
        return self._all((trusted_issuers.c.project == project) & (trusted_issuers.c.issuer_id > after), limit)

    def delete_issuer(self, project: str, issuer_id: str) -> bool:
        """Delete one; whether there was one."""
        deleted = self._connection.execute(trusted_issuers.delete().where(_named(project, issuer_id)))
        return deleted.rowcount > 0

    def remember_subject(self, issuer_name: str, subject: str, until: float, now: float) -> None:
        """Keep that a subject got tokens through an issuer until a time; those whose time is over are forgotten."""
        self._connection.execute(federated_subjects.delete().where(federated_subjects.c.until < now))
        wanted = (federated_subjects.c.issuer_name == issuer_name) & (federated_subjects.c.subject == subject)
        found = self._connection.execute(sa.select(federated_subjects.c.until).where(wanted)).scalar()
        self._connection.execute(federated_subjects.delete().where(wanted))
        self._connection.execute(
            federated_subjects.insert().values(issuer_name=issuer_name, subject=subject, until=max(until, found or 0.0))
        )

    def subjects(self, issuer_name: str, now: float) -> list[str]:
        """Subjects whose tokens may still be good, in order."""
        wanted = (federated_subjects.c.issuer_name == issuer_name) & (federated_subjects.c.until >= now)
        query = sa.select(federated_subjects.c.subject).where(wanted).order_by(federated_subjects.c.subject)
        return [str(subject) for (subject,) in self._connection.execute(query)]

    def _all(self, wanted: sa.ColumnElement[bool], limit: int | None = None) -> list[TrustedIssuer]:
        query = sa.select(trusted_issuers).where(wanted).order_by(trusted_issuers.c.issuer_id).limit(limit)
        return [_issuer(row) for row in self._connection.execute(query)]


def _named(project: str, issuer_id: str) -> sa.ColumnElement[bool]:
    return (trusted_issuers.c.project == project) & (trusted_issuers.c.issuer_id == issuer_id)


def _issuer(row: sa.Row[tuple[object, ...]]) -> TrustedIssuer:
    rules = tuple(ClaimRule(claims, tuple(roles), prefix) for claims, roles, prefix in json.loads(row.rules))
    return TrustedIssuer(**(dict(row._mapping) | {"rules": rules}))
