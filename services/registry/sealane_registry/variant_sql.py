"""Variants in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from sealane.errors import AlreadyExists
from sealane_registry.rows import Scope, SignatureRow, VariantRow
from sealane_registry.schema import measurements, signatures, variant_files, variants
from sealane_registry.sql import Sql, in_variant

_Place = tuple[str, int, str]


class VariantSql(Sql):
    """Implements :class:`sealane_registry.store.Variants`."""

    def add_variant(self, row: VariantRow, files: Mapping[str, str]) -> None:
        """Add, with path and digest of its files; a taken name raises AlreadyExists. The version's etag changes."""
        scope = Scope(row.project, row.model, row.number, row.variant)
        if self._connection.execute(sa.select(variants.c.variant).where(in_variant(variants, scope))).first():
            raise AlreadyExists(f"variant {row.variant} exists; variants are immutable, choose another id")
        self._insert(variants, row)
        place = {"project": row.project, "model": row.model, "number": row.number, "variant": row.variant}
        self._connection.execute(
            variant_files.insert(), [{**place, "path": path, "sha256": sha256} for path, sha256 in files.items()]
        )
        self._touch(scope)

    def variants(self, scopes: Sequence[Scope]) -> dict[Scope, list[VariantRow]]:
        """Variants of some versions of one project, oldest first, whole."""
        found: dict[Scope, list[VariantRow]] = {Scope(item.project, item.model, item.number): [] for item in scopes}
        if not found:
            return found
        query = sa.select(variants).where(_among(variants, scopes))
        rows = self._connection.execute(query.order_by(variants.c.create_time, variants.c.variant)).all()
        measured = self._measurements(scopes) if rows else {}
        signed = self._signatures(scopes) if rows else {}
        for row in rows:
            place = (row.model, row.number, row.variant)
            found[Scope(row.project, row.model, row.number)].append(
                VariantRow(
                    row.project,
                    row.model,
                    row.number,
                    row.variant,
                    row.digest,
                    row.content,
                    row.create_time,
                    tuple(measured.get(place, ())),
                    tuple(signed.get(place, ())),
                    row.load_check,
                )
            )
        return found

    def add_measurement(self, scope: Scope, content: bytes, now: float) -> None:
        """Add a measurement to a variant; the version's etag changes."""
        self._connection.execute(
            measurements.insert().values(
                project=scope.project,
                model=scope.model,
                number=scope.number,
                variant=scope.name,
                content=content,
                create_time=now,
            )
        )
        self._touch(scope)

    def add_signature(self, scope: Scope, row: SignatureRow) -> bool:
        """Add a signature; one of the same key stays as it is. Whether it was added."""
        there = in_variant(signatures, scope) & (signatures.c.key_id == row.key_id)
        if self._connection.execute(sa.select(signatures.c.key_id).where(there)).first():
            return False
        place = {"project": scope.project, "model": scope.model, "number": scope.number, "variant": scope.name}
        self._insert(signatures, row, **place)
        self._touch(scope)
        return True

    def put_load_check(self, scope: Scope, content: bytes) -> None:
        """Set what came of loading a variant; the version's etag changes."""
        self._connection.execute(variants.update().where(in_variant(variants, scope)).values(load_check=content))
        self._touch(scope)

    def _measurements(self, scopes: Sequence[Scope]) -> dict[_Place, list[bytes]]:
        found: dict[_Place, list[bytes]] = {}
        query = sa.select(measurements).where(_among(measurements, scopes)).order_by(measurements.c.id)
        for row in self._connection.execute(query):
            found.setdefault((row.model, row.number, row.variant), []).append(row.content)
        return found

    def _signatures(self, scopes: Sequence[Scope]) -> dict[_Place, list[SignatureRow]]:
        found: dict[_Place, list[SignatureRow]] = {}
        query = sa.select(signatures).where(_among(signatures, scopes)).order_by(signatures.c.create_time)
        for row in self._connection.execute(query):
            signature = SignatureRow(row.key_id, row.bundle, row.create_time)
            found.setdefault((row.model, row.number, row.variant), []).append(signature)
        return found


def _among(table: sa.Table, scopes: Sequence[Scope]) -> sa.ColumnElement[bool]:
    """Rows of some versions of one model, as lists and gets ask for them."""
    first = scopes[0]
    numbers = [sa.literal(scope.number, sa.BigInteger) for scope in scopes]
    return (table.c.project == first.project) & (table.c.model == first.model) & table.c.number.in_(numbers)
