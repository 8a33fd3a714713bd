"""REG-5: PostgreSQL answers gets and lists by indexes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from sealane.records import listing
from sealane.registry.v1 import dataset_service_pb2 as dataset_pb
from sealane.registry.v1 import model_service_pb2 as pb
from sealane_registry import schema
from sealane_registry.alias_servicer import MOVES
from sealane_registry.dataset_servicer import DATASETS
from sealane_registry.model_servicer import MODELS, VERSIONS
from sealane_registry.rows import Scope
from sealane_registry.store_sql import SqlStore

MANY = 2000
PLACE = Scope("p", "m01000", 2)


@pytest.fixture(scope="module")
def full(postgresql: sa.Engine) -> Iterator[sa.Connection]:
    """Two thousand models with two versions each, in two projects, and what belongs to them."""
    with postgresql.connect() as connection:
        for project in ("p", "q"):
            _fill(connection, project)
        connection.execute(sa.text("analyze"))
        # Tables of a page or two are read through otherwise, index or not.
        connection.execute(sa.text("set enable_seqscan = off"))
        yield connection
        connection.rollback()


def _fill(connection: sa.Connection, project: str) -> None:
    names = [f"m{place:05}" for place in range(MANY)]
    times = {"create_time": 1.0, "update_time": 1.0}
    base = {"project": project}

    def add(table: sa.Table, rows: list[dict[str, Any]]) -> None:
        connection.execute(table.insert(), rows)

    models = [{**base, **times, "model": name, "description": "", "etag": "e", "next_number": 3} for name in names]
    versions = [
        {**base, "model": name, "number": n, "content": b"", "create_time": 1.0, "etag": "e"}
        for name in names
        for n in (1, 2)
    ]
    of_version = [{**base, "model": item["model"], "number": item["number"]} for item in versions]
    add(schema.models, models)
    add(schema.versions, versions)
    add(
        schema.variants,
        [{**item, "variant": "v", "digest": "d", "content": b"", "create_time": 1.0} for item in of_version],
    )
    add(
        schema.variant_files,
        [{**item, "variant": "v", "path": "a", "sha256": f"{place:064}"} for place, item in enumerate(of_version)],
    )
    add(
        schema.measurements,
        [
            {**item, "id": place * 2 + (project == "q"), "variant": "v", "content": b"", "create_time": 1.0}
            for place, item in enumerate(of_version)
        ],
    )
    add(
        schema.labels, [{**base, "kind": "model", "resource": name, "key": "team", "value": name[-1]} for name in names]
    )
    add(
        schema.aliases,
        [
            {**base, "model": name, "alias": "production", "number": 1, "update_time": 1.0, "etag": "e"}
            for name in names
        ],
    )
    add(
        schema.alias_moves,
        [
            {**base, "model": name, "alias": "production", "sequence": 1, "number": 1, "previous": 0, "time_us": 1}
            | {"mover": "a", "evidence": "", "previous_hash": "", "hash": ""}
            for name in names
        ],
    )
    add(schema.artifacts, [{**base, "sha256": f"{place:064}", "size": 1, "create_time": 1.0} for place in range(MANY)])
    add(
        schema.datasets,
        [
            {
                **base,
                "dataset": name,
                "content": b"",
                "digest": name,
                "format": "npz",
                "rows": 1,
                "size": 1,
                "creator": "a",
                "create_time": 1.0,
            }
            for name in names
        ],
    )
    add(schema.uses, [{**base, "kind": "version", "resource": f"{name}/1", "holder": "d"} for name in names])


def models(**asked: Any) -> Callable[[SqlStore], object]:
    request = pb.ListModelsRequest(**asked)
    return lambda store: store.models("p", listing.read(MODELS, request))


QUERIES: dict[str, Callable[[SqlStore], object]] = {
    "get a model": lambda store: store.model("p", "m01000"),
    "get a version": lambda store: store.version(PLACE),
    "get variants": lambda store: store.variants([PLACE]),
    "get an alias": lambda store: store.alias(Scope("p", "m01000", name="production")),
    "aliases": lambda store: store.aliases("p", "m01000"),
    "as of": lambda store: store.move_as_of(Scope("p", "m01000", name="production"), 10),
    "moves": lambda store: store.moves(
        Scope("p", "m01000", name="production"), listing.read(MOVES, pb.ListAliasMovesRequest())
    ),
    "list models": models(),
    "list models by time": models(order_by="create_time desc"),
    "list models by change": models(order_by="update_time"),
    "list models with a label": models(filter="labels.team = 7"),
    "list versions": lambda store: store.versions("p", "m01000", listing.read(VERSIONS, pb.ListVersionsRequest())),
    "list datasets": lambda store: store.datasets("p", listing.read(DATASETS, dataset_pb.ListDatasetsRequest())),
    "datasets by digest": lambda store: store.datasets(
        "p", listing.read(DATASETS, dataset_pb.ListDatasetsRequest(filter="digest = m00007"))
    ),
    "models with a file": lambda store: store.models_with_file("p", f"{7:064}"),
    "an artifact": lambda store: store.artifact_size("p", f"{7:064}"),
    "whether anybody has it": lambda store: store.has_content(f"{7:064}"),
    "who uses a version": lambda store: store.holders("p", "version", "m00007/1"),
    "changes": lambda store: store.changes("p", 5, 100),
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_uses_indexes_alone(full: sa.Connection, query: str) -> None:
    seen: list[tuple[str, Any]] = []

    def note(connection, cursor, statement, parameters, context, many) -> None:
        if statement.lstrip().upper().startswith("SELECT"):
            seen.append((statement, parameters))

    sa.event.listen(full, "before_cursor_execute", note)
    try:
        QUERIES[query](SqlStore(full))
    finally:
        sa.event.remove(full, "before_cursor_execute", note)
    assert seen
    for statement, parameters in seen:
        plan = "\n".join(row[0] for row in full.exec_driver_sql(f"explain {statement}", parameters))
        assert "Seq Scan" not in plan, plan


def test_a_query_without_an_index_shows(full: sa.Connection) -> None:
    plan = "\n".join(row[0] for row in full.exec_driver_sql("explain select * from models where description = 'x'"))
    assert "Seq Scan" in plan
