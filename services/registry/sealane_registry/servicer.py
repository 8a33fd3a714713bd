"""ModelService and VariantService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

import re

from sealane.errors import InvalidArgument
from sealane.names import parse
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.call import Call
from sealane_registry import present
from sealane_registry.access import check_files
from sealane_registry.catalog import CatalogRules
from sealane_registry.store import Scope, Store, VersionRow

Records = Transactions[Store]
_DIGITS = re.compile(r"[0-9]{1,18}")
_MODEL, _VERSION = "projects/*/models/*", "projects/*/models/*/versions/*"
_VARIANT, _ALIAS = "projects/*/models/*/versions/*/variants/*", "projects/*/models/*/aliases/*"
_NO_LIMIT = 2**62


class ModelServicer:
    """ModelService."""

    def __init__(self, records: Records, rules: CatalogRules) -> None:
        self._records = records
        self._rules = rules

    async def CreateModel(self, request: model_pb.CreateModelRequest, call: Call) -> bytes:
        (project,) = parse(request.parent, "projects/*", "parent")
        who = actor(call, project)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: present.model(
                self._rules.create_model(store, who, request.model_id, request.model.description)
            ),
        )

    async def GetModel(self, request: model_pb.GetModelRequest, call: Call) -> model_pb.Model:
        project, model = parse(request.name, _MODEL)
        return present.model(await self._records.read(lambda store: self._rules.get_model(store, project, model)))

    async def ListModels(self, request: model_pb.ListModelsRequest, call: Call) -> model_pb.ListModelsResponse:
        (project,) = parse(request.parent, "projects/*", "parent")
        size, after = page_of(request.page_size), read_token(request.page_token)
        rows = await self._records.read(lambda store: store.models(project, after, size + 1))
        more = write_token(rows[size - 1].model) if len(rows) > size else ""
        mine = [row for row in rows[:size] if call.caller.may_use("models:read", row.model)]
        return model_pb.ListModelsResponse(models=[present.model(row) for row in mine], next_page_token=more)

    async def CreateVersion(self, request: model_pb.CreateVersionRequest, call: Call) -> bytes:
        project, model = parse(request.parent, _MODEL, "parent")
        if not request.version.signatures:
            raise InvalidArgument("a version needs its signatures; read them from the model", field="version")
        content = present.version_content(request.version)
        variant = present.new_variant(request.variant_id, request.variant)
        who = actor(call, project)

        def create(store: Store) -> model_pb.Version:
            check_files(store, call, project, [file.sha256 for file in variant.files])
            return _whole(store, self._rules.create_version(store, who, model, content, variant))

        return await self._records.once(call, request, request.request_id, create)

    async def GetVersion(self, request: model_pb.GetVersionRequest, call: Call) -> model_pb.Version:
        project, model, number = parse(request.name, _VERSION)
        return await self._records.read(
            lambda store: _whole(store, self._rules.find_version(store, Scope(project, model), number))
        )

    async def ListVersions(self, request: model_pb.ListVersionsRequest, call: Call) -> model_pb.ListVersionsResponse:
        project, model = parse(request.parent, _MODEL, "parent")
        size, token = page_of(request.page_size), read_token(request.page_token)
        below = _number(token, "page_token") if token else _NO_LIMIT

        def read(store: Store) -> model_pb.ListVersionsResponse:
            self._rules.get_model(store, project, model)
            rows = store.versions(Scope(project, model), below, size + 1)
            more = write_token(str(rows[size - 1].number)) if len(rows) > size else ""
            return model_pb.ListVersionsResponse(
                versions=[_whole(store, row) for row in rows[:size]], next_page_token=more
            )

        return await self._records.read(read)

    async def MoveAlias(self, request: model_pb.MoveAliasRequest, call: Call) -> bytes:
        project, model, name = parse(request.name, _ALIAS)
        target = parse(request.version, _VERSION, "version")
        if target[:2] != (project, model):
            raise InvalidArgument("version must name a version of the same model by its number", field="version")
        scope, who = Scope(project, model, _number(target[2], "version"), name), actor(call, project)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: present.alias(self._rules.move_alias(store, who, scope, request.etag)),
        )

    async def GetAlias(self, request: model_pb.GetAliasRequest, call: Call) -> model_pb.Alias:
        project, model, name = parse(request.name, _ALIAS)
        return present.alias(
            await self._records.read(lambda store: self._rules.get_alias(store, Scope(project, model, name=name)))
        )


class VariantServicer:
    """VariantService."""

    def __init__(self, records: Records, rules: CatalogRules) -> None:
        self._records = records
        self._rules = rules

    async def CreateVariant(self, request: variant_pb.CreateVariantRequest, call: Call) -> bytes:
        project, model, number = parse(request.parent, _VERSION, "parent")
        scope, who = Scope(project, model, _number(number)), actor(call, project)
        variant = present.new_variant(request.variant_id, request.variant)

        def create(store: Store) -> variant_pb.Variant:
            check_files(store, call, project, [file.sha256 for file in variant.files])
            return present.variant(self._rules.create_variant(store, who, scope, variant))

        return await self._records.once(call, request, request.request_id, create, project)

    async def GetVariant(self, request: variant_pb.GetVariantRequest, call: Call) -> variant_pb.Variant:
        project, model, number, name = parse(request.name, _VARIANT)
        scope = Scope(project, model, _number(number), name)
        return present.variant(await self._records.read(lambda store: self._rules.get_variant(store, scope)))

    async def ListVariants(
        self, request: variant_pb.ListVariantsRequest, call: Call
    ) -> variant_pb.ListVariantsResponse:
        project, model, number = parse(request.parent, _VERSION, "parent")
        size, after = page_of(request.page_size), read_token(request.page_token)
        rows = await self._records.read(lambda store: store.variants(Scope(project, model, _number(number))))
        names = [row.variant for row in rows]
        start = names.index(after) + 1 if after in names else 0
        more = write_token(names[start + size - 1]) if len(rows) > start + size else ""
        return variant_pb.ListVariantsResponse(
            variants=[present.variant(row) for row in rows[start : start + size]], next_page_token=more
        )

    async def RecordMeasurement(self, request: variant_pb.RecordMeasurementRequest, call: Call) -> bytes:
        project, model, number, name = parse(request.name, _VARIANT)
        scope, who = Scope(project, model, _number(number), name), actor(call, project)
        content = present.measurement_content(request.measurement)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: present.variant(self._rules.add_measurement(store, who, scope, content)),
            project,
        )


def _whole(store: Store, row: VersionRow) -> model_pb.Version:
    return present.version(row, store.variants(Scope(row.project, row.model, row.number)))


def _number(text: str, field: str = "parent") -> int:
    # More digits than the database has room for are no version's number either.
    if not _DIGITS.fullmatch(text):
        raise InvalidArgument(f"{field} names {text!r} where the number of a version must stand", field=field)
    return int(text)
