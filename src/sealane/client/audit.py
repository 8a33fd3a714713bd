"""The audit logs of an installation: who changed what, and whether anybody touched the logs themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from sealane.auth.v1 import audit_service_pb2 as pb
from sealane.auth.v1 import audit_service_pb2_grpc
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.errors import InvalidArgument
from sealane.security.audit_checkpoint import Checkpoint, Notary
from sealane.security.audit_log import AuditRow, Report, verify
from sealane.security.audit_messages import checkpoint_of, row_of

#: Services with an audit log.
SERVICES = ("auth", "registry", "scheduler")
#: Checking or exporting a long log takes its time: it is read from the first row on.
_WHOLE_LOG_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which events; what is left out lets everything pass.

    Args:
        action: exact action, such as ``MoveAlias``.
        actor: exact account or SPIFFE id.
        resource_prefix: beginning of the resource name.
        start: events at or after it.
        end: events before it.
    """

    action: str = ""
    actor: str = ""
    resource_prefix: str = ""
    start: datetime | None = None
    end: datetime | None = None


class Audit:
    """The audit logs of auth, registry and scheduler; each service keeps its own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self, service: str, wanted: AuditFilter | None = None) -> Iterator[pb.AuditEvent]:
        """A service's events in the project, newest last."""
        wanted = wanted or AuditFilter()
        stub = self._stub(service)

        def fetch(token: str) -> pb.ListAuditEventsResponse:
            request = pb.ListAuditEventsRequest(
                parent=self._session.parent,
                page_size=1000,
                page_token=token,
                action=wanted.action,
                actor=wanted.actor,
                resource_prefix=wanted.resource_prefix,
            )
            if wanted.start is not None:
                request.start_time.FromDatetime(wanted.start)
            if wanted.end is not None:
                request.end_time.FromDatetime(wanted.end)
            return stub.ListAuditEvents(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.audit_events)

    def verify(self, service: str) -> pb.VerifyAuditLogResponse:
        """What the service itself finds when it checks its whole log."""
        return self._stub(service).VerifyAuditLog(pb.VerifyAuditLogRequest(), timeout=_WHOLE_LOG_SECONDS)

    def checkpoints(self, service: str) -> Iterator[pb.AuditCheckpoint]:
        """A service's signed checkpoints, oldest first."""
        stub = self._stub(service)

        def fetch(token: str) -> pb.ListAuditCheckpointsResponse:
            request = pb.ListAuditCheckpointsRequest(page_size=1000, page_token=token)
            return stub.ListAuditCheckpoints(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.audit_checkpoints)

    def export(self, service: str) -> Iterator[pb.ExportAuditLogResponse]:
        """A service's whole log of all projects with its checkpoints."""
        yield from self._stub(service).ExportAuditLog(pb.ExportAuditLogRequest(), timeout=_WHOLE_LOG_SECONDS)

    def _stub(self, service: str) -> audit_service_pb2_grpc.AuditServiceStub:
        if service not in SERVICES:
            raise InvalidArgument(f"{service!r} keeps no audit log; ask one of {', '.join(SERVICES)}", field="service")
        return audit_service_pb2_grpc.AuditServiceStub(self._session.channel(service))


def verify_exported(
    entries: Iterable[pb.ExportAuditLogResponse],
    trust_bundle: bytes,
    kept: Iterable[pb.ExportAuditLogResponse] = (),
) -> list[Report]:
    """Check exported logs without any service; one report for each service in them.

    Args:
        entries: of one or more exports, each service's in its order.
        trust_bundle: root certificates, PEM.
        kept: checkpoints that were kept elsewhere.
    """
    rows: dict[str, list[AuditRow]] = {}
    marks: dict[str, list[Checkpoint]] = {}
    for entry in entries:
        if entry.HasField("audit_event"):
            rows.setdefault(entry.audit_event.service, []).append(row_of(entry.audit_event))
        else:
            _add(marks, entry)
    for entry in kept:
        _add(marks, entry)
    reports = []
    for service in sorted(rows.keys() | marks.keys()):
        later = sorted(marks.get(service, []), key=lambda mark: (mark.sequence, mark.time_us))
        reports.append(verify(rows.get(service, []), later, Notary(service, trust_bundle)))
    return reports


def _add(marks: dict[str, list[Checkpoint]], entry: pb.ExportAuditLogResponse) -> None:
    if entry.HasField("audit_checkpoint"):
        marks.setdefault(entry.audit_checkpoint.service, []).append(checkpoint_of(entry.audit_checkpoint))
