"""ModelService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import empty_pb2

from sealane.errors import InvalidArgument
from sealane.names import parse
from sealane.records import listing
from sealane.records.listing import LABELS, NUMBER, TEXT, TIME, Fields
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import promotion_pb2
from sealane.rpc.call import Call
from sealane.security.permissions import roles_held
from sealane_registry import policy, present
from sealane_registry.access import check_files
from sealane_registry.alias_servicer import AliasMethods
from sealane_registry.aliases import AliasRules
from sealane_registry.catalog import CatalogRules
from sealane_registry.inspector import Inspector
from sealane_registry.limits import LimitRules
from sealane_registry.places import MODEL, PROJECT, VERSION, version_scope
from sealane_registry.reviews import ReviewRules
from sealane_registry.rows import ModelRow, Scope, VersionRow
from sealane_registry.store import Store
from sealane_registry.use_servicer import UseMethods
from sealane_registry.watch import Watches

MODELS = Fields(
    {"name": TEXT, "description": TEXT, "create_time": TIME, "update_time": TIME, "labels": LABELS},
    ("name", "create_time", "update_time"),
)
VERSIONS = Fields(
    {"number": NUMBER, "create_time": TIME, "state": TEXT, "publisher": TEXT, "labels": LABELS}, ("number",), True
)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules behind ModelService."""

    catalog: CatalogRules
    aliases: AliasRules
    reviews: ReviewRules
    limits: LimitRules


class ModelServicer(AliasMethods, UseMethods):
    """ModelService."""

    def __init__(self, records: Transactions[Store], rules: Rules, inspector: Inspector, watches: Watches) -> None:
        AliasMethods.__init__(self, records, rules.aliases)
        UseMethods.__init__(self, records, watches, rules.limits)
        self._records = records
        self._rules = rules.catalog
        self._reviews = rules.reviews
        self._inspector = inspector

    async def CreateModel(self, request: pb.CreateModelRequest, call: Call) -> bytes:
        (project,) = parse(request.parent, PROJECT, "parent")
        who, wanted = actor(call, project), request.model
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: present.model(
                self._rules.create_model(store, who, request.model_id, wanted.description, dict(wanted.labels))
            ),
        )

    async def GetModel(self, request: pb.GetModelRequest, call: Call) -> pb.Model:
        project, model = parse(request.name, MODEL)
        return present.model(await self._records.read(lambda store: self._rules.get_model(store, project, model)))

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        (project,) = parse(request.parent, PROJECT, "parent")
        asked = listing.read(MODELS, request)
        rows = await self._records.read(lambda store: store.models(project, asked))
        keys = {"name": "model", "create_time": "create_time", "update_time": "update_time"}
        token = asked.next_token([(getattr(row, keys[asked.order]), row.model) for row in rows])
        mine = [row for row in rows[: asked.size] if call.caller.may_use("models:read", row.model)]
        return pb.ListModelsResponse(models=[present.model(row) for row in mine], next_page_token=token)

    async def UpdateModel(self, request: pb.UpdateModelRequest, call: Call) -> bytes:
        project, model = parse(request.name, MODEL)
        fields = set(request.update_mask.paths) or {"*"}
        if unknown := fields - {"*", "description", "labels"}:
            raise InvalidArgument(
                f"update_mask names {sorted(unknown)[0]!r}; there are description and labels", field="update_mask"
            )
        wanted = ModelRow(
            project, model, request.model.description, 0, 0, request.model.etag, dict(request.model.labels)
        )
        named = ("description", "labels") if "*" in fields else tuple(sorted(fields))
        who = actor(call, project)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: present.model(self._rules.update_model(store, who, wanted, named)),
        )

    async def DeleteModel(self, request: pb.DeleteModelRequest, call: Call) -> bytes:
        project, model = parse(request.name, MODEL)
        who = actor(call, project)

        def delete(store: Store) -> empty_pb2.Empty:
            self._rules.delete_model(store, who, model, request.etag)
            return empty_pb2.Empty()

        return await self._records.once(call, request, request.request_id, delete)

    async def CreateVersion(self, request: pb.CreateVersionRequest, call: Call) -> bytes:
        project, model = parse(request.parent, MODEL, "parent")
        version = present.new_version(project, request.version)
        variant = present.new_variant(request.variant_id, request.variant, request.bundles)
        variant = await self._inspector.look(project, variant, request.variant.format)
        who = actor(call, project)

        def create(store: Store) -> pb.Version:
            check_files(store, call, project, [file.sha256 for file in variant.files])
            return whole(store, [self._rules.create_version(store, who, model, version, variant)])[0]

        return await self._records.once(call, request, request.request_id, create)

    async def GetVersion(self, request: pb.GetVersionRequest, call: Call) -> pb.Version:
        project, model, number = parse(request.name, VERSION)
        return await self._records.read(
            lambda store: whole(store, [self._rules.find_version(store, Scope(project, model), number)])[0]
        )

    async def ListVersions(self, request: pb.ListVersionsRequest, call: Call) -> pb.ListVersionsResponse:
        project, model = parse(request.parent, MODEL, "parent")
        asked = listing.read(VERSIONS, request)

        def read(store: Store) -> pb.ListVersionsResponse:
            self._rules.get_model(store, project, model)
            rows = store.versions(project, model, asked)
            token = asked.next_token([(row.number,) for row in rows])
            return pb.ListVersionsResponse(versions=whole(store, rows[: asked.size]), next_page_token=token)

        return await self._records.read(read)

    async def ApproveVersion(self, request: pb.ApproveVersionRequest, call: Call) -> bytes:
        scope, roles = version_scope(request.name), roles_held(call.caller.scopes)
        who = actor(call, scope.project)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: whole(store, [self._reviews.approve(store, who, scope, roles, request.comment)])[0],
        )

    async def RejectVersion(self, request: pb.RejectVersionRequest, call: Call) -> bytes:
        scope = version_scope(request.name)
        who = actor(call, scope.project)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: whole(store, [self._reviews.reject(store, who, scope, request.reason)])[0],
        )

    async def DeprecateVersion(self, request: pb.DeprecateVersionRequest, call: Call) -> bytes:
        scope = version_scope(request.name)
        who = actor(call, scope.project)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: whole(store, [self._reviews.deprecate(store, who, scope, request.reason)])[0],
        )

    async def ExplainPromotion(self, request: pb.ExplainPromotionRequest, call: Call) -> promotion_pb2.GateReport:
        project, model, number = parse(request.name, VERSION)

        def read(store: Store) -> promotion_pb2.GateReport:
            row = self._rules.find_version(store, Scope(project, model), number)
            found = self._aliases.explain(store, Scope(project, model, row.number, request.alias))
            return present.report(found.scope, found.checks)

        return await self._records.read(read)


def whole(store: Store, rows: list[VersionRow]) -> list[pb.Version]:
    """Versions of one model with their variants."""
    if not rows:
        return []
    variants = store.variants([row.scope for row in rows])
    demands = policy.from_json(store.policy(rows[0].project).content)
    return [present.version(row, variants[row.scope], demands) for row in rows]
