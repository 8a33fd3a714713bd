"""DatasetService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

from google.protobuf import empty_pb2

from sealane.names import parse
from sealane.records import listing
from sealane.records.listing import LABELS, NUMBER, TEXT, TIME, Fields
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import dataset_service_pb2 as pb
from sealane.rpc.call import Call
from sealane_registry import present_datasets as present
from sealane_registry.datasets import DatasetRules
from sealane_registry.places import DATASET, PROJECT
from sealane_registry.store import Store

DATASETS = Fields(
    {
        "name": TEXT,
        "create_time": TIME,
        "rows": NUMBER,
        "size_bytes": NUMBER,
        "format": TEXT,
        "digest": TEXT,
        "labels": LABELS,
    },
    ("name", "create_time"),
)


class DatasetServicer:
    """DatasetService."""

    def __init__(self, records: Transactions[Store], rules: DatasetRules) -> None:
        self._records = records
        self._rules = rules

    async def CreateDataset(self, request: pb.CreateDatasetRequest, call: Call) -> bytes:
        (project,) = parse(request.parent, PROJECT, "parent")
        wanted, who = present.new_dataset(request.dataset_id, request.dataset), actor(call, project)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: present.dataset(self._rules.create(store, who, wanted)),
        )

    async def GetDataset(self, request: pb.GetDatasetRequest, call: Call) -> pb.Dataset:
        project, dataset = parse(request.name, DATASET)
        return present.dataset(await self._records.read(lambda store: self._rules.get(store, project, dataset)))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, call: Call) -> pb.ListDatasetsResponse:
        (project,) = parse(request.parent, PROJECT, "parent")
        asked = listing.read(DATASETS, request)
        rows = await self._records.read(lambda store: store.datasets(project, asked))
        order = "dataset" if asked.order == "name" else asked.order
        token = asked.next_token([(getattr(row, order), row.dataset) for row in rows])
        return pb.ListDatasetsResponse(
            datasets=[present.dataset(row) for row in rows[: asked.size]], next_page_token=token
        )

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, call: Call) -> bytes:
        project, dataset = parse(request.name, DATASET)
        who = actor(call, project)

        def delete(store: Store) -> empty_pb2.Empty:
            row = self._rules.get(store, project, dataset)
            self._rules.delete(store, who, dataset, present.shards_of(row))
            return empty_pb2.Empty()

        return await self._records.once(call, request, request.request_id, delete)
