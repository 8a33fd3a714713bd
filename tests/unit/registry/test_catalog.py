"""The rules of the catalog, on a real database in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from sealane.clock import ManualClock
from sealane.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from sealane.records import tables
from sealane.records.listing import Listing
from sealane.records.tables import Actor
from sealane_registry.aliases import AliasRules
from sealane_registry.catalog import CatalogRules, File, NewVariant, NewVersion, check_files, manifest_digest
from sealane_registry.facts import facts_of
from sealane_registry.rows import Scope
from sealane_registry.store_sql import SqlStore, metadata

WHO = Actor("admin", "p", "r-1")
FILE = File("model.tflite", "a" * 64, 10)
VARIANT = NewVariant("litert", [FILE], b"content")


@pytest.fixture
def store() -> Iterator[SqlStore]:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        metadata.create_all(connection)
        tables.metadata.create_all(connection)
        yield SqlStore(connection)
    engine.dispose()


@pytest.fixture
def rules(store: SqlStore) -> CatalogRules:
    rules = CatalogRules(ManualClock())
    store.add_artifact("p", FILE.sha256, FILE.size, 0.0)
    rules.create_model(store, WHO, "digits", "")
    return rules


def test_versions_are_numbered_and_never_reused(store: SqlStore, rules: CatalogRules) -> None:
    numbers = [rules.create_version(store, WHO, "digits", NewVersion(b""), VARIANT).number for _ in range(3)]
    assert numbers == [1, 2, 3]
    listed = store.versions("p", "digits", Listing((), "number", True, 10))
    assert [row.number for row in listed] == [3, 2, 1]
    assert rules.get_model(store, "p", "digits").version_count == 3


def test_files_must_be_there_and_be_the_same(store: SqlStore, rules: CatalogRules) -> None:
    missing = NewVariant("x", [File("m", "b" * 64, 1)], b"")
    with pytest.raises(FailedPrecondition, match="not uploaded"):
        rules.create_version(store, WHO, "digits", NewVersion(b""), missing)
    with pytest.raises(InvalidArgument, match="10 bytes"):
        rules.create_version(store, WHO, "digits", NewVersion(b""), NewVariant("x", [File("m", FILE.sha256, 9)], b""))


def test_another_projects_artifact_is_not_there(store: SqlStore, rules: CatalogRules) -> None:
    other = Actor("b", "q")
    rules.create_model(store, other, "digits", "")
    with pytest.raises(FailedPrecondition, match="not uploaded"):
        rules.create_version(store, other, "digits", NewVersion(b""), VARIANT)


def test_names_are_taken_once(store: SqlStore, rules: CatalogRules) -> None:
    with pytest.raises(AlreadyExists):
        rules.create_model(store, WHO, "digits", "")
    rules.create_version(store, WHO, "digits", NewVersion(b""), VARIANT)
    with pytest.raises(AlreadyExists):
        rules.create_variant(store, WHO, Scope("p", "digits", 1), VARIANT)


def test_an_alias_moves_by_compare_and_set(store: SqlStore, rules: CatalogRules) -> None:
    for _ in range(2):
        rules.create_version(store, WHO, "digits", NewVersion(b""), VARIANT)
    aliases = AliasRules(ManualClock(), facts_of)
    first = aliases.move(store, WHO, Scope("p", "digits", 1, "production"), "")
    with pytest.raises(Aborted):
        aliases.move(store, WHO, Scope("p", "digits", 2, "production"), "")
    second = aliases.move(store, WHO, Scope("p", "digits", 2, "production"), first.etag)
    with pytest.raises(Aborted):
        aliases.move(store, WHO, Scope("p", "digits", 1, "production"), first.etag)
    assert rules.find_version(store, Scope("p", "digits"), "production").number == 2
    assert second.etag != first.etag
    with pytest.raises(NotFound):
        aliases.move(store, WHO, Scope("p", "digits", 9, "production"), second.etag)


def test_measurements_are_added_and_change_nothing_else(store: SqlStore, rules: CatalogRules) -> None:
    version = rules.create_version(store, WHO, "digits", NewVersion(b""), VARIANT)
    scope = Scope("p", "digits", 1, "litert")
    before = rules.get_variant(store, scope)
    after = rules.add_measurement(store, WHO, scope, b"m1")
    assert after.measurements == (b"m1",) and after.digest == before.digest
    assert store.version(Scope("p", "digits", 1)).etag != version.etag


def test_every_change_is_audited_in_its_transaction(store: SqlStore, rules: CatalogRules) -> None:
    rules.create_version(store, WHO, "digits", NewVersion(b""), VARIANT)
    rows = store._connection.execute(sa.select(tables.audit.c.action, tables.audit.c.request_id)).all()
    assert [row.action for row in rows] == ["CreateModel", "CreateVersion", "CreateVariant"]
    assert {row.request_id for row in rows} == {"r-1"}


NAMES = [
    "",
    "/etc/passwd",
    "../x",
    "a/../b",
    "a//b",
    "a/",
    ".",
    "a\\b",
    "C:x",
    "a\0b",
    "a%2e%2e/b",
    "a.",
    "a ",
    "x" * 513,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_files([File(name, "a" * 64, 1)])


def test_case_twins_and_empty_lists_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        check_files([File("A", "a" * 64, 1), File("a", "b" * 64, 1)])
    with pytest.raises(InvalidArgument):
        check_files([])


def test_the_manifest_digest_is_of_the_set_not_the_order() -> None:
    files = [File("a", "a" * 64, 1), File("b", "b" * 64, 2)]
    assert manifest_digest(files) == manifest_digest(files[::-1])
    assert manifest_digest(files) != manifest_digest([files[0], File("c", "b" * 64, 2)])
