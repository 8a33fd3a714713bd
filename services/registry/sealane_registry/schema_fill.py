"""Fills what migration 0003 adds from what a registry before it kept. Goes once all such registries are gone."""

from __future__ import annotations

import sqlalchemy as sa

from sealane.registry.v1 import variant_service_pb2
from sealane.security.alias_history import GENESIS, Move


def _table(name: str, *columns: str) -> sa.TableClause:
    """A table as it was then: what later migrations add is not asked for."""
    return sa.table(name, *(sa.column(column) for column in columns))


models = _table("models", "project")
variants = _table("variants", "project", "model", "number", "variant", "content")
variant_files = _table("variant_files", "project", "model", "number", "variant", "path", "sha256")
artifacts = _table("artifacts", "project", "size")
usage = _table("usage", "project", "bytes", "models")
aliases = _table("aliases", "project", "model", "alias", "number", "update_time", "moves", "head")
alias_moves = _table(
    "alias_moves",
    *("project", "model", "alias", "sequence", "number", "previous"),
    *("time_us", "mover", "evidence", "previous_hash", "hash"),
)


def fill(connection: sa.Connection) -> None:
    """Files of variants, what projects have, and the first move of each alias."""
    for row in connection.execute(sa.select(variants)).all():
        files = variant_service_pb2.Variant.FromString(row.content).files
        place = {"project": row.project, "model": row.model, "number": row.number, "variant": row.variant}
        connection.execute(
            variant_files.insert(), [{**place, "path": file.path, "sha256": file.sha256} for file in files]
        )
    _count(connection)
    for row in connection.execute(sa.select(aliases)).all():
        name = f"projects/{row.project}/models/{row.model}/aliases/{row.alias}"
        # Who moved it last is in the audit log; the history begins here.
        move = Move(name, 1, row.number, 0, round(row.update_time * 1e6), "", "", GENESIS)
        key = {"project": row.project, "model": row.model, "alias": row.alias}
        connection.execute(
            alias_moves.insert().values(
                **key,
                sequence=1,
                number=move.number,
                previous=0,
                time_us=move.time_us,
                mover="",
                evidence="",
                previous_hash=GENESIS.hex(),
                hash=move.hash.hex(),
            )
        )
        same = sa.and_(*(aliases.c[name] == value for name, value in key.items()))
        connection.execute(aliases.update().where(same).values(moves=1, head=move.hash.hex()))


def _count(connection: sa.Connection) -> None:
    held = connection.execute(
        sa.select(artifacts.c.project, sa.func.sum(artifacts.c.size)).group_by(artifacts.c.project)
    ).all()
    sizes = {project: int(size) for project, size in held}
    counted = connection.execute(sa.select(models.c.project, sa.func.count()).group_by(models.c.project)).all()
    counts = {project: int(count) for project, count in counted}
    for project in sizes.keys() | counts.keys():
        values = {"project": project, "bytes": sizes.get(project, 0), "models": counts.get(project, 0)}
        connection.execute(usage.insert().values(**values))
