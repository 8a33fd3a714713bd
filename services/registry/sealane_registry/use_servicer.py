"""The methods of ModelService about changes and uses."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sealane.errors import Aborted
from sealane.names import parse
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.rpc.authorisation import model_id
from sealane.rpc.call import Call
from sealane.rpc.times import time_of
from sealane_registry.limits import LimitRules
from sealane_registry.places import PROJECT, alias_scope, version_scope
from sealane_registry.rows import UseRow
from sealane_registry.store import Store
from sealane_registry.watch import Seen, Watches

_KINDS = ("models", "datasets", "policy")


class UseMethods:
    """Part of ModelService."""

    def __init__(self, records: Transactions[Store], watches: Watches, limits: LimitRules) -> None:
        self._records = records
        self._watches = watches
        self._limits = limits
        self._told: list[UseRow] = []
        """What the report under way has told; one scheduler tells at a time."""
        self._parts = 0

    async def WatchModels(self, request: pb.WatchModelsRequest, call: Call) -> AsyncIterator[pb.WatchModelsResponse]:
        (project,) = parse(request.parent, PROJECT, "parent")
        async for seen in self._watches.follow(project, request.after_revision):
            if seen.change is None:
                yield pb.WatchModelsResponse(revision=seen.revision)
            elif _is_for(call, request.resource_prefix, seen.change.resource):
                yield _event(seen)

    async def ReportUse(self, request: pb.ReportUseRequest, call: Call) -> pb.ReportUseResponse:
        if request.part == 0:
            self._told, self._parts = [], 0
        if request.part != self._parts:
            raise Aborted("this part belongs to a report that is not under way; begin again", reason="REPORT_LOST")
        self._told += [row for use in request.uses for row in _rows(use)]
        self._parts += 1
        if not request.more:
            rows, self._told, self._parts = self._told, [], 0
            await self._records.write(lambda store: self._limits.report_uses(store, rows))
        return pb.ReportUseResponse()


def _event(seen: Seen) -> pb.WatchModelsResponse:
    change = seen.change
    assert change is not None
    return pb.WatchModelsResponse(
        revision=seen.revision,
        event=pb.ModelEvent(
            action=change.action, resource=change.resource, event_time=time_of(change.time), details=seen.details
        ),
    )


def _is_for(call: Call, prefix: str, resource: str) -> bool:
    parts = resource.split("/")
    if len(parts) < 3 or parts[2] not in _KINDS:
        return False
    if prefix and resource != prefix and not resource.startswith(prefix.rstrip("/") + "/"):
        return False
    if "models:read" in call.caller.models:
        return parts[2] == "models" and call.caller.may_use("models:read", model_id(resource))
    return True


def _rows(use: pb.Use) -> list[UseRow]:
    rows = []
    for name in use.versions:
        scope = version_scope(name, "uses.versions")
        rows.append(UseRow(scope.project, "version", f"{scope.model}/{scope.number}", use.holder))
    for name in use.aliases:
        scope = alias_scope(name, "uses.aliases")
        rows.append(UseRow(scope.project, "alias", f"{scope.model}/{scope.name}", use.holder))
    for name in use.artifacts:
        project, sha256 = parse(name, "projects/*/artifacts/*", "uses.artifacts")
        rows.append(UseRow(project, "artifact", sha256, use.holder))
    return rows
