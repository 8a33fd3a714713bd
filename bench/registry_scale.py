"""REG-5: gets and list pages of a registry of 100,000 models with three versions each, in process on SQLite.

Calls go through the servicers, with parsing of requests and making of answers, but no network. What is printed are the
99th percentiles over a thousand gets of each kind and two hundred pages of each list; pages begin all over the list.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sealane.clock import SystemClock
from sealane.records import listing, tables
from sealane.records.database import Database
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.call import Call, Identity, Peer
from sealane.rpc.policy import methods_of
from sealane_registry import schema
from sealane_registry.alias_servicer import AliasMethods
from sealane_registry.aliases import AliasRules
from sealane_registry.catalog import CatalogRules
from sealane_registry.facts import facts_of
from sealane_registry.inspector import Inspector
from sealane_registry.limits import LimitRules
from sealane_registry.model_servicer import MODELS, ModelServicer, Rules
from sealane_registry.reviews import ReviewRules
from sealane_registry.store import Store
from sealane_registry.store_sql import SqlStore
from sealane_registry.watch import Watches

COUNT, VERSIONS = 100_000, 3
GETS, PAGES = 1000, 200
GET_MS, PAGE_MS = 5.0, 20.0
CHUNK = 5000


def fill(connection: sa.Connection) -> None:
    """The tables and their rows."""
    schema.metadata.create_all(connection)
    tables.metadata.create_all(connection)
    content = pb.Version(signatures=[{"name": "serving_default"}]).SerializeToString()
    files = [{"path": "model.onnx", "sha256": "0" * 64, "size_bytes": 1000}]
    variant = variant_pb.Variant(format=variant_pb.FORMAT_ONNX, files=files).SerializeToString()
    numbers = range(1, VERSIONS + 1)
    for start in range(0, COUNT, CHUNK):
        places = range(start, min(start + CHUNK, COUNT))
        names = [f"m{place:06}" for place in places]
        times = {name: float(place * 7919 % COUNT) for name, place in zip(names, places, strict=True)}
        base = {"project": "p"}
        every = [{**base, "model": name, "number": number} for name in names for number in numbers]

        def add(table: sa.Table, rows: list[dict[str, Any]]) -> None:
            connection.execute(table.insert(), rows)

        add(
            schema.models,
            [
                {**base, "model": name, "description": "", "create_time": times[name], "update_time": times[name]}
                | {"etag": "e", "next_number": VERSIONS + 1}
                for name in names
            ],
        )
        add(schema.versions, [{**item, "content": content, "create_time": 1.0, "etag": "e"} for item in every])
        add(
            schema.variants,
            [{**item, "variant": "onnx", "digest": "d", "content": variant, "create_time": 1.0} for item in every],
        )
        add(
            schema.aliases,
            [
                {**base, "model": name, "alias": "production", "number": 2, "update_time": 1.0, "etag": "e"}
                for name in names
            ],
        )
        label = [
            {**base, "kind": "model", "resource": name, "key": "team", "value": f"t{place % 100}"}
            for name, place in zip(names, places, strict=True)
        ]
        add(schema.labels, label)


def call() -> Call:
    """Of somebody who may read all models."""
    method = next(iter(methods_of(pb.DESCRIPTOR.services_by_name["ModelService"])))
    return Call(method, {}, Peer(), 0.0, identity=Identity("somebody", "p"))


async def p99(ask: Callable[[], Awaitable[object]], count: int) -> float:
    """99th percentile of the time of a call, in milliseconds."""
    laps = []
    for _ in range(count):
        started = time.perf_counter()
        await ask()
        laps.append((time.perf_counter() - started) * 1e3)
    return sorted(laps)[int(count * 0.99)]


async def measure(servicer: ModelServicer) -> tuple[dict[str, float], dict[str, float]]:
    """Percentiles of gets and of list pages, by kind."""
    chance, who = random.Random(1), call()

    def name() -> str:
        return f"projects/p/models/m{chance.randrange(COUNT):06}"

    def page(filter_: str = "", order: str = "") -> Callable[[], Awaitable[object]]:
        def ask() -> Awaitable[object]:
            request = pb.ListModelsRequest(parent="projects/p", filter=filter_, order_by=order)
            place, time_ = f"m{chance.randrange(COUNT):06}", float(chance.randrange(COUNT))
            request.page_token = listing.read(MODELS, request).token(time_ if "time" in order else place, place)
            return servicer.ListModels(request, who)

        return ask

    gets = {
        "model": lambda: servicer.GetModel(pb.GetModelRequest(name=name()), who),
        "version": lambda: servicer.GetVersion(pb.GetVersionRequest(name=f"{name()}/versions/3"), who),
        "version by alias": lambda: servicer.GetVersion(
            pb.GetVersionRequest(name=f"{name()}/versions/production"), who
        ),
        "alias": lambda: AliasMethods.GetAlias(servicer, pb.GetAliasRequest(name=f"{name()}/aliases/production"), who),
    }
    lists = {
        "models by name": page(),
        "models by time": page(order="create_time desc"),
        "models with a label": page('labels.team = "t7"'),
        "versions": lambda: servicer.ListVersions(pb.ListVersionsRequest(parent=name()), who),
    }
    for ask in (*gets.values(), *lists.values()):
        await p99(ask, 20)  # warm
    return (
        {kind: await p99(ask, GETS) for kind, ask in gets.items()},
        {kind: await p99(ask, PAGES) for kind, ask in lists.items()},
    )


def main() -> int:
    """Fill, measure, print; 1 where a bound does not hold."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        database = Database.at(Path(folder) / "registry.db")
        database.start(fill)
        records: Transactions[Store] = Transactions(database, SqlStore, clock)
        rules = Rules(CatalogRules(clock), AliasRules(clock, facts_of), ReviewRules(clock, facts_of), LimitRules(clock))
        servicer = ModelServicer(records, rules, Inspector(records, None), Watches(records))  # type: ignore[arg-type]
        try:
            gets, lists = asyncio.run(measure(servicer))
        finally:
            database.close()
    for kind, value in {**gets, **lists}.items():
        print(f"{kind}: p99 {value:.2f} ms")
    get, page = max(gets.values()), max(lists.values())
    print(f"figure: {COUNT} models x {VERSIONS} versions: get p99 {get:.2f} ms, list page p99 {page:.2f} ms")
    return 0 if get <= GET_MS and page <= PAGE_MS else 1


if __name__ == "__main__":
    sys.exit(main())
