"""The methods of ModelService about aliases and their history."""

from __future__ import annotations

from dataclasses import replace

from google.protobuf import empty_pb2

from sealane.errors import InvalidArgument
from sealane.names import parse
from sealane.records import listing
from sealane.records.listing import NUMBER, TEXT, TIME, Fields
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.rpc.call import Call
from sealane.rpc.times import seconds_of
from sealane_registry import present
from sealane_registry.aliases import AliasRules
from sealane_registry.places import MODEL, alias_scope, version_scope
from sealane_registry.store import Store

ALIASES = Fields({"name": TEXT, "version": NUMBER, "update_time": TIME}, ("name",))
MOVES = Fields({"sequence": NUMBER, "move_time": TIME, "mover": TEXT, "version": NUMBER}, ("sequence",), True)


class AliasMethods:
    """Part of ModelService."""

    def __init__(self, records: Transactions[Store], aliases: AliasRules) -> None:
        self._records = records
        self._aliases = aliases

    async def MoveAlias(self, request: pb.MoveAliasRequest, call: Call) -> bytes:
        scope = alias_scope(request.name)
        target = version_scope(request.version, "version")
        if (target.project, target.model) != (scope.project, scope.model):
            raise InvalidArgument("version must name a version of the same model by its number", field="version")
        place, who = replace(scope, number=target.number), actor(call, scope.project)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: present.alias(self._aliases.move(store, who, place, request.etag)),
        )

    async def GetAlias(self, request: pb.GetAliasRequest, call: Call) -> pb.Alias:
        scope = alias_scope(request.name)
        return present.alias(await self._records.read(lambda store: self._aliases.get(store, scope)))

    async def ListAliases(self, request: pb.ListAliasesRequest, call: Call) -> pb.ListAliasesResponse:
        project, model = parse(request.parent, MODEL, "parent")
        asked = listing.read(ALIASES, request)
        rows = await self._records.read(lambda store: store.aliases(project, model))
        values = [
            ({"name": row.alias, "version": row.number, "update_time": row.update_time}, row.alias) for row in rows
        ]
        chosen, token = listing.page_in_memory(asked, values)
        return pb.ListAliasesResponse(aliases=[present.alias(rows[place]) for place in chosen], next_page_token=token)

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, call: Call) -> bytes:
        scope = alias_scope(request.name)
        who = actor(call, scope.project)

        def delete(store: Store) -> empty_pb2.Empty:
            self._aliases.delete(store, who, scope, request.etag)
            return empty_pb2.Empty()

        return await self._records.once(call, request, request.request_id, delete)

    async def ListAliasMoves(self, request: pb.ListAliasMovesRequest, call: Call) -> pb.ListAliasMovesResponse:
        scope = alias_scope(request.parent, "parent")
        asked = listing.read(MOVES, request)
        rows = await self._records.read(lambda store: store.moves(scope, asked))
        token = asked.next_token([(row.sequence,) for row in rows])
        return pb.ListAliasMovesResponse(moves=[present.move(row) for row in rows[: asked.size]], next_page_token=token)

    async def GetAliasAsOf(self, request: pb.GetAliasAsOfRequest, call: Call) -> pb.AliasMove:
        scope = alias_scope(request.name)
        time = seconds_of(request.time, "time") if request.HasField("time") else None
        return present.move(await self._records.read(lambda store: self._aliases.as_of(store, scope, time)))
