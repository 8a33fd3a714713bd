"""Datasets are immutable, digested, and need their shards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from registry_site import ADA, Site

from sealane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from sealane.records import listing
from sealane.registry.v1 import dataset_service_pb2 as pb
from sealane_registry.catalog import File
from sealane_registry.dataset_servicer import DATASETS
from sealane_registry.datasets import Field, NewDataset, Shard, digest_of
from sealane_registry.rows import UseRow

SCHEMA = (Field("x", "FP32", (8, 8)), Field("y", "INT64", (), True))


def new(site: Site, name: str = "train", **more: object) -> NewDataset:
    shards = [Shard(site.file("a.npz"), 100), Shard(site.file("b.npz"), 50)]
    return replace(NewDataset(name, "npz", SCHEMA, shards, b"content"), **more)  # type: ignore[arg-type]


def test_a_dataset_counts_and_is_found(site: Site) -> None:
    row = site.datasets.create(site.store, ADA, new(site, labels={"team": "vision"}))
    assert (row.rows, row.size, row.creator) == (150, sum(item.file.size for item in new(site).shards), ADA.subject)

    def found(filter_: str) -> list[str]:
        asked = listing.read(DATASETS, pb.ListDatasetsRequest(filter=filter_))
        return [item.dataset for item in site.store.datasets("p", asked)]

    assert found("rows >= 150 AND labels.team = vision") == found(f'digest = "{row.digest}"') == ["train"]
    assert found("rows > 150") == found("labels.team != vision") == []
    with pytest.raises(AlreadyExists):
        site.datasets.create(site.store, ADA, new(site))


def test_the_digest_is_over_all_that_matters_and_in_order(site: Site) -> None:
    base = new(site)
    assert digest_of(base) == digest_of(replace(base, content=b"x", labels={"a": "b"}, dataset="other"))
    first, second = base.shards
    others = [
        replace(base, format="csv"),
        replace(base, schema=SCHEMA[:1]),
        replace(base, schema=(SCHEMA[0], replace(SCHEMA[1], label=False))),
        replace(base, schema=(replace(SCHEMA[0], shape=(64,)), SCHEMA[1])),
        replace(base, shards=[second, first]),
        replace(base, shards=[first]),
        replace(base, shards=[replace(first, rows=101), second]),
        replace(base, shards=[replace(first, file=replace(first.file, path="c.npz")), second]),
    ]
    assert len({digest_of(item) for item in [base, *others]}) == len(others) + 1


def test_shards_must_be_there_and_be_the_same(site: Site) -> None:
    with pytest.raises(FailedPrecondition, match="not uploaded"):
        site.datasets.create(site.store, ADA, new(site, shards=[Shard(File("a", "f" * 64, 1), 1)]))
    file = site.file("a")
    with pytest.raises(InvalidArgument, match="bytes"):
        site.datasets.create(site.store, ADA, new(site, shards=[Shard(replace(file, size=1), 1)]))


BAD: dict[str, dict[str, object]] = {
    "no shards": {"shards": []},
    "no format": {"format": ""},
    "a format of two words": {"format": "a b"},
    "an unknown datatype": {"schema": (Field("x", "FLOAT", ()),)},
    "one name twice": {"schema": (Field("x", "FP32", ()), Field("x", "FP32", ()))},
    "a name with a blank": {"schema": (Field("x y", "FP32", ()),)},
    "a negative size": {"schema": (Field("x", "FP32", (-2,)),)},
}


@pytest.mark.parametrize("case", BAD)
def test_what_means_nothing_is_refused(site: Site, case: str) -> None:
    with pytest.raises(InvalidArgument):
        site.datasets.create(site.store, ADA, new(site, **BAD[case]))


def test_a_dataset_in_use_stays_and_a_deleted_name_is_gone(site: Site) -> None:
    wanted = new(site)
    shards = [item.file.sha256 for item in wanted.shards]
    site.datasets.create(site.store, ADA, wanted)
    site.limits.report_uses(site.store, [UseRow("p", "artifact", shards[1], "projects/p/jobs/j")])
    with pytest.raises(FailedPrecondition, match="jobs/j"):
        site.datasets.delete(site.store, ADA, "train", shards)
    site.limits.report_uses(site.store, [])
    site.datasets.delete(site.store, ADA, "train", shards)
    with pytest.raises(NotFound):
        site.datasets.get(site.store, "p", "train")
    with pytest.raises(AlreadyExists):
        site.datasets.create(site.store, ADA, new(site))
