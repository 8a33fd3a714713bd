"""VariantService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

from sealane.names import parse
from sealane.records import listing
from sealane.records.listing import NUMBER, TEXT, TIME, Fields
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane.rpc.call import Call
from sealane_registry import policy, present
from sealane_registry.access import check_files
from sealane_registry.catalog import CatalogRules
from sealane_registry.inspector import Inspector
from sealane_registry.places import VERSION, number_of, variant_scope, version_scope
from sealane_registry.reviews import ReviewRules
from sealane_registry.rows import Scope, VariantRow
from sealane_registry.store import Store

VARIANTS = Fields(
    {"name": TEXT, "format": TEXT, "precision": TEXT, "create_time": TIME, "size_bytes": NUMBER},
    ("create_time", "name", "size_bytes"),
)


class VariantServicer:
    """VariantService."""

    def __init__(
        self, records: Transactions[Store], rules: CatalogRules, reviews: ReviewRules, inspector: Inspector
    ) -> None:
        self._records = records
        self._rules = rules
        self._reviews = reviews
        self._inspector = inspector

    async def CreateVariant(self, request: pb.CreateVariantRequest, call: Call) -> bytes:
        scope = version_scope(request.parent, "parent")
        project, who = scope.project, actor(call, scope.project)
        by_job = call.peer.kind == "scheduler"
        variant = present.new_variant(request.variant_id, request.variant, request.bundles, by_job=by_job)
        variant = await self._inspector.look(project, variant, request.variant.format)

        def create(store: Store) -> pb.Variant:
            check_files(store, call, project, [file.sha256 for file in variant.files])
            return _whole(store, self._rules.create_variant(store, who, scope, variant))

        return await self._records.once(call, request, request.request_id, create, project)

    async def GetVariant(self, request: pb.GetVariantRequest, call: Call) -> pb.Variant:
        scope = variant_scope(request.name)
        return await self._records.read(lambda store: _whole(store, self._rules.get_variant(store, scope)))

    async def ListVariants(self, request: pb.ListVariantsRequest, call: Call) -> pb.ListVariantsResponse:
        project, model, number = parse(request.parent, VERSION, "parent")
        scope = Scope(project, model, number_of(number))
        asked = listing.read(VARIANTS, request)

        def read(store: Store) -> list[pb.Variant]:
            self._rules.find_version(store, Scope(project, model), str(scope.number))
            demands = policy.from_json(store.policy(project).content)
            return [present.variant(row, demands) for row in store.variants([scope])[scope]]

        found = await self._records.read(read)
        chosen, token = listing.page_in_memory(asked, [(_values(item), _id(item)) for item in found])
        return pb.ListVariantsResponse(variants=[found[place] for place in chosen], next_page_token=token)

    async def RecordMeasurement(self, request: pb.RecordMeasurementRequest, call: Call) -> bytes:
        scope = variant_scope(request.name)
        who = actor(call, scope.project)
        content = present.measurement_content(request.measurement, who.subject)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: _whole(store, self._rules.add_measurement(store, who, scope, content)),
            scope.project,
        )

    async def RecordLoadCheck(self, request: pb.RecordLoadCheckRequest, call: Call) -> bytes:
        scope = variant_scope(request.name)
        who, check = actor(call, scope.project), request.load_check
        content = check.SerializeToString(deterministic=True)

        def keep(store: Store) -> pb.Variant:
            self._reviews.record_load_check(store, who, scope, content, loadable=check.loadable)
            return _whole(store, self._rules.get_variant(store, scope))

        return await self._records.once(call, request, request.request_id, keep, scope.project)


def _whole(store: Store, row: VariantRow) -> pb.Variant:
    return present.variant(row, policy.from_json(store.policy(row.project).content))


def _id(message: pb.Variant) -> str:
    return message.name.rpartition("/")[2]


def _values(message: pb.Variant) -> dict[str, object]:
    return {
        "name": _id(message),
        "format": pb.Format.Name(message.format).removeprefix("FORMAT_"),
        "precision": pb.Precision.Name(message.precision).removeprefix("PRECISION_"),
        "create_time": message.create_time.ToNanoseconds() / 1e9,
        "size_bytes": message.size_bytes,
    }
