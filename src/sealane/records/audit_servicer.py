"""AuditService, as auth, registry and scheduler serve it over their own tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from sealane import names
from sealane.auth.v1 import audit_service_pb2 as pb
from sealane.errors import DataLoss, InvalidArgument
from sealane.records import audit_rows
from sealane.records.audit import Sealer
from sealane.records.audit_rows import Filter, Read
from sealane.records.paging import page_of, read_token, write_token
from sealane.rpc.call import Call
from sealane.rpc.times import seconds_of
from sealane.security.audit_checkpoint import Checkpoint, Notary
from sealane.security.audit_log import AuditRow, Report, Unreadable, verify
from sealane.security.audit_messages import checkpoint_message, event_of, verification

_EXPORT_BATCH = 500


class AuditServicer:
    """AuditService over the table that a sealer looks after."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    async def ListAuditEvents(self, request: pb.ListAuditEventsRequest, call: Call) -> pb.ListAuditEventsResponse:
        """A page of a project's events."""
        (project,) = names.parse(request.parent, "projects/*", "parent")
        size, after = page_of(request.page_size), _number(request.page_token)
        wanted = Filter(
            project,
            request.action,
            request.actor,
            request.resource_prefix,
            seconds_of(request.start_time, "start_time") if request.HasField("start_time") else None,
            seconds_of(request.end_time, "end_time") if request.HasField("end_time") else None,
        )
        found = await asyncio.wrap_future(
            self._sealer.database.read(lambda connection: audit_rows.events(connection, wanted, after, size + 1))
        )
        more = write_token(str(found[size - 1].id)) if len(found) > size else ""
        events = [event_of(self._sealer.service, _readable(row)) for row in found[:size]]
        return pb.ListAuditEventsResponse(audit_events=events, next_page_token=more)

    async def VerifyAuditLog(self, request: pb.VerifyAuditLogRequest, call: Call) -> pb.VerifyAuditLogResponse:
        """Check this service's log."""
        return verification(await asyncio.to_thread(self._verify))

    async def ListAuditCheckpoints(
        self, request: pb.ListAuditCheckpointsRequest, call: Call
    ) -> pb.ListAuditCheckpointsResponse:
        """A page of this service's checkpoints."""
        size, after = page_of(request.page_size), _number(request.page_token)
        service, database = self._sealer.service, self._sealer.database
        found = await asyncio.wrap_future(
            database.read(lambda connection: audit_rows.checkpoint_page(connection, service, after, size + 1))
        )
        more = write_token(str(found[size - 1][0])) if len(found) > size else ""
        checkpoints = [checkpoint_message(checkpoint) for _, checkpoint in found[:size]]
        return pb.ListAuditCheckpointsResponse(audit_checkpoints=checkpoints, next_page_token=more)

    async def ExportAuditLog(
        self, request: pb.ExportAuditLogRequest, call: Call
    ) -> AsyncIterator[pb.ExportAuditLogResponse]:
        """The whole log with its checkpoints; the last of them covers what was committed before the call."""
        await self._sealer.mark()
        entries = self._entries()
        while batch := await asyncio.to_thread(_take, entries):
            for entry in batch:
                yield entry

    def _verify(self) -> Report:
        sealer = self._sealer
        # Read the bounds first: what is written meanwhile can only add rows, never make the log look cut off.
        bounds = sealer.database.read(lambda connection: audit_rows.bounds(connection, sealer.clock.now())).result()
        notary = Notary(sealer.service, sealer.identity.trust_bundle)
        marks = list(audit_rows.checkpoints(sealer.database, sealer.service))
        return verify(audit_rows.rows(sealer.database), marks, notary, bounds)

    def _entries(self) -> Iterator[pb.ExportAuditLogResponse]:
        service, marks = self._sealer.service, audit_rows.checkpoints(self._sealer.database, self._sealer.service)
        mark = next(marks, None)
        for row in audit_rows.rows(self._sealer.database):
            sequence = _readable(row).sequence
            while mark is not None and sequence is not None and mark.sequence < sequence:
                yield _marked(mark)
                mark = next(marks, None)
            yield pb.ExportAuditLogResponse(audit_event=event_of(service, _readable(row)))
        while mark is not None:
            yield _marked(mark)
            mark = next(marks, None)


def _marked(checkpoint: Checkpoint) -> pb.ExportAuditLogResponse:
    return pb.ExportAuditLogResponse(audit_checkpoint=checkpoint_message(checkpoint))


def _take(entries: Iterator[pb.ExportAuditLogResponse]) -> list[pb.ExportAuditLogResponse]:
    return [entry for _, entry in zip(range(_EXPORT_BATCH), entries, strict=False)]


def _readable(row: Read) -> AuditRow:
    if isinstance(row, Unreadable):
        raise DataLoss("the audit log is damaged; see 'sealane audit verify'", reason="AUDIT_DAMAGED")
    return row


def _number(token: str) -> int:
    key = read_token(token)
    if not key:
        return 0
    if not (key.isascii() and key.isdecimal() and len(key) <= 18):
        raise InvalidArgument("page_token is not one of ours; start without it", field="page_token")
    return int(key)
