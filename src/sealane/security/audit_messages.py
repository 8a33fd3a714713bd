"""Audit rows and checkpoints between the log's own form and the contract's, without losing a bit of what is hashed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from sealane.auth.v1 import audit_service_pb2 as pb
from sealane.errors import InvalidArgument
from sealane.security.audit_checkpoint import Checkpoint
from sealane.security.audit_log import AuditRow, Report

_KINDS = {name.removeprefix("KIND_").lower(): number for name, number in pb.AuditFault.Kind.items()}


def event_of(service: str, row: AuditRow) -> pb.AuditEvent:
    """A row as the contract says it."""
    return pb.AuditEvent(
        name=f"projects/{row.project}/auditEvents/{row.id}",
        service=service,
        id=row.id,
        project=row.project,
        actor=row.actor,
        action=row.action,
        resource=row.resource,
        request_id=row.request_id,
        details=row.details,
        create_time=Timestamp(seconds=row.time_ns // 10**9, nanos=row.time_ns % 10**9),
        sequence=row.sequence or 0,
        hash=row.hash,
    )


def row_of(event: pb.AuditEvent) -> AuditRow:
    """The row that an event stands for."""
    return AuditRow(
        id=event.id,
        time_ns=event.create_time.seconds * 10**9 + event.create_time.nanos,
        project=event.project,
        actor=event.actor,
        action=event.action,
        resource=event.resource,
        request_id=event.request_id,
        details=event.details,
        sequence=event.sequence or None,
        hash=event.hash,
    )


def checkpoint_message(checkpoint: Checkpoint) -> pb.AuditCheckpoint:
    """A checkpoint as the contract says it."""
    return pb.AuditCheckpoint(
        service=checkpoint.service,
        sequence=checkpoint.sequence,
        hash=checkpoint.hash,
        create_time=Timestamp(seconds=checkpoint.time_us // 10**6, nanos=checkpoint.time_us % 10**6 * 1000),
        signature=checkpoint.signature,
        certificate_chain=checkpoint.chain.decode("ascii", "replace"),
    )


def checkpoint_of(message: pb.AuditCheckpoint) -> Checkpoint:
    """The checkpoint that a message stands for."""
    return Checkpoint(
        message.service,
        message.sequence,
        message.hash,
        message.create_time.seconds * 10**6 + message.create_time.nanos // 1000,
        message.signature,
        message.certificate_chain.encode(),
    )


def verification(report: Report) -> pb.VerifyAuditLogResponse:
    """A report as the contract says it."""
    response = pb.VerifyAuditLogResponse(
        service=report.service,
        rows=report.rows,
        last_sequence=report.last_sequence,
        unsealed=report.unsealed,
        checkpoints=report.checkpoints,
    )
    if report.fault is not None:
        fault = report.fault
        response.fault.kind = pb.AuditFault.Kind.ValueType(_KINDS[fault.kind.value])
        response.fault.sequence = min(max(fault.sequence, 0), 2**63 - 1)
        response.fault.row_id = fault.row_id
        response.fault.description = fault.why
    return response


def to_line(entry: pb.ExportAuditLogResponse) -> str:
    """A row or a checkpoint as one JSON line, the form of exports and of checkpoint files."""
    fields = json_format.MessageToDict(entry, preserving_proto_field_name=True)
    return json.dumps(fields, separators=(",", ":")) + "\n"


def from_lines(lines: Iterable[str]) -> Iterator[pb.ExportAuditLogResponse]:
    """What an export or a checkpoint file holds.

    Raises:
        InvalidArgument: a line that is neither, named by its number.
    """
    for number, line in enumerate(lines, 1):
        try:
            entry = json_format.Parse(line, pb.ExportAuditLogResponse())
        except json_format.ParseError as error:
            raise InvalidArgument(f"line {number} is no audit entry; use a file of 'sealane audit export'") from error
        if entry.WhichOneof("entry") is None:
            raise InvalidArgument(f"line {number} is no audit entry; use a file of 'sealane audit export'")
        yield entry
