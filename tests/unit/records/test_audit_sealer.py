"""The sealer over a real table: when rows are sealed, what a crash leaves, and what an edited file shows."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from audit_parts import START, Pki

from sealane.auth.v1 import audit_service_pb2 as pb
from sealane.clock import ManualClock
from sealane.errors import DataLoss, InvalidArgument, Unavailable
from sealane.records import audit as sealing
from sealane.records import tables
from sealane.records.audit import Sealer
from sealane.records.audit_servicer import AuditServicer
from sealane.records.database import Database
from sealane.records.tables import Actor
from sealane.rpc.call import Call, Peer
from sealane.rpc.policy import methods_of
from sealane.security.audit_checkpoint import Notary
from sealane.security.audit_log import verify
from sealane.security.audit_messages import checkpoint_of, from_lines, row_of
from sealane.security.tls import PeerIdentity

PKI = Pki.make()
items = sa.Table("items", sa.MetaData(), sa.Column("name", sa.String, primary_key=True))


def prepare(connection: sa.Connection) -> None:
    items.metadata.create_all(connection)
    tables.metadata.create_all(connection)


class Service:
    """A database with a sealer, that can be stopped and started on the same file."""

    def __init__(self, folder: Path, identity: PeerIdentity) -> None:
        self.path, self.folder, self.identity = folder / "x.db", folder, identity
        self.clock = ManualClock(START + 10)
        self.start()

    def start(self) -> None:
        self.database = Database.at(self.path)
        self.database.start(prepare)
        marks = str(self.folder / "checkpoints.jsonl")
        self.sealer = Sealer(self.database, "registry", self.identity, self.clock, marks)
        self.servicer = AuditServicer(self.sealer)

    def change(self, name: str, project: str = "p") -> None:
        """A mutation that is audited."""

        def run(connection: sa.Connection) -> None:
            connection.execute(items.insert().values(name=name))
            tables.record(
                connection,
                actor=Actor("ann", project, "r-1"),
                action="CreateItem",
                resource=f"projects/{project}/items/{name}",
                now=self.clock.now(),
                size="7",
            )

        self.database.write(run).result(5)

    def edit(self, statement: str) -> None:
        """What somebody does to the file of a stopped service."""
        self.database.close()
        with sqlite3.connect(self.path) as raw:
            raw.execute(statement)
        raw.close()
        self.start()

    async def verified(self) -> pb.VerifyAuditLogResponse:
        return await self.servicer.VerifyAuditLog(pb.VerifyAuditLogRequest(), call("VerifyAuditLog"))

    async def exported(self) -> list[pb.ExportAuditLogResponse]:
        entries = self.servicer.ExportAuditLog(pb.ExportAuditLogRequest(), call("ExportAuditLog"))
        return [entry async for entry in entries]


def call(name: str) -> Call:
    method = next(m for m in methods_of(pb.DESCRIPTOR.services_by_name["AuditService"]) if m.name == name)
    return Call(method=method, metadata={}, peer=Peer(), deadline=1e12)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    made = Service(tmp_path, PKI.service(tmp_path / "identity"))
    yield made
    made.database.close()


async def test_rows_are_sealed_in_the_order_of_their_commit_and_a_checkpoint_covers_them(service: Service) -> None:
    for number in range(3):
        service.change(f"a{number}")
    assert (await service.verified()).unsealed == 3
    await service.sealer.mark()
    report = await service.verified()
    assert (report.rows, report.last_sequence, report.unsealed, report.checkpoints) == (3, 3, 0, 1)
    assert not report.HasField("fault")


async def test_the_loop_seals_by_itself(service: Service) -> None:
    task = asyncio.create_task(service.sealer.run())
    service.change("a")
    while (await service.verified()).checkpoints == 0:
        await asyncio.sleep(0.05)
    service.change("b")
    while (await service.verified()).rows < 2:
        await asyncio.sleep(0.05)
    assert (await service.verified()).checkpoints == 1, "the next checkpoint is due in a minute"
    service.clock.advance(61)
    while (await service.verified()).checkpoints < 2:
        await asyncio.sleep(0.05)
    task.cancel()


async def test_a_thousand_rows_bring_a_checkpoint_before_its_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "CHECKPOINT_ROWS", 5)
    service.change("first")
    await service.sealer.mark()
    for number in range(5):
        service.change(f"n{number}")
        await service.sealer.seal()
        await service.sealer._mark_if_due()
        assert (await service.verified()).checkpoints == (2 if number == 4 else 1)


async def test_more_rows_than_a_batch_make_one_chain(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealane.records.audit_rows.BATCH", 4)
    for number in range(11):
        service.change(f"n{number}")
    await service.sealer.seal()
    report = await service.verified()
    assert (report.rows, report.unsealed) == (11, 0)
    assert not report.HasField("fault")


async def test_a_restart_goes_on_where_the_chain_stands(service: Service) -> None:
    service.change("a")
    await service.sealer.close()
    service.database.close()
    service.start()
    service.change("b")
    await service.sealer.close()
    report = await service.verified()
    assert (report.rows, report.checkpoints) == (2, 2)
    assert not report.HasField("fault")


@pytest.mark.parametrize("point", ["audit.sealed", "database.before_commit", "audit.before_checkpoint"])
async def test_a_failure_at_any_point_leaves_rows_sealed_or_waiting(
    service: Service, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    service.change("a")

    def fail(name: str) -> None:
        if name == point:
            raise sa.exc.OperationalError("disk", None, OSError())

    for module in ("audit", "database"):
        monkeypatch.setattr(f"sealane.records.{module}.failpoint", fail)
    with pytest.raises((Unavailable, sa.exc.OperationalError)):
        await service.sealer.mark()
    monkeypatch.undo()
    assert not (await service.verified()).HasField("fault")
    service.change("b")
    await service.sealer.mark()
    report = await service.verified()
    assert (report.rows, report.unsealed, report.checkpoints) == (2, 0, 1)
    assert not report.HasField("fault")


async def test_a_change_that_cannot_be_recorded_is_not_made(service: Service) -> None:
    service.edit("create trigger full before insert on audit begin select raise(abort, 'disk full'); end")
    with pytest.raises(Unavailable) as refused:
        service.change("a")
    assert refused.value.reason == "NOT_AUDITED"
    assert service.database.read(lambda connection: connection.execute(sa.select(items)).all()).result(5) == []
    service.edit("drop trigger full")
    service.change("a")
    assert (await service.verified()).unsealed == 1


async def test_an_export_verifies_without_the_service(service: Service) -> None:
    for number in range(4):
        service.change(f"a{number}", "p" if number % 2 else "q")
    entries = await service.exported()
    rows = [row_of(entry.audit_event) for entry in entries if entry.HasField("audit_event")]
    marks = [checkpoint_of(entry.audit_checkpoint) for entry in entries if entry.HasField("audit_checkpoint")]
    assert (len(rows), len(marks)) == (4, 1)
    assert verify(rows, marks, Notary("registry", PKI.trust)).fault is None
    kept = list(from_lines((service.folder / "checkpoints.jsonl").read_text().splitlines()))
    assert [checkpoint_of(entry.audit_checkpoint) for entry in kept] == marks


EDITS = {
    "update audit set actor = 'eve' where id = 3": ("KIND_ALTERED", 3),
    "update audit set details = '{}' where id = 1": ("KIND_ALTERED", 1),
    "update audit set time = time + 1 where id = 6": ("KIND_ALTERED", 6),
    "update audit set time = 'noon' where id = 2": ("KIND_ALTERED", 2),
    "update audit set time = 1e999 where id = 2": ("KIND_ALTERED", 2),
    "update audit set resource = x'00ff' where id = 2": ("KIND_ALTERED", 2),
    "update audit set resource = cast(x'ff' as text) where id = 2": ("KIND_ALTERED", 2),
    "update audit set hash = 'zz' where id = 2": ("KIND_ALTERED", 2),
    "update audit set hash = null where id = 2": ("KIND_ALTERED", 2),
    "update audit set sequence = 'two' where id = 2": ("KIND_MISSING", 2),
    "update audit set sequence = -2 where id = 2": ("KIND_REORDERED", 0),
    "update audit set sequence = 70 where id = 2": ("KIND_MISSING", 2),
    "delete from audit where id = 4": ("KIND_MISSING", 4),
    "delete from audit where id = 6": ("KIND_MISSING", 6),
    "delete from audit": ("KIND_MISSING", 1),
    "update audit_checkpoints set signature = x'00'": ("KIND_CHECKPOINT", 6),
    "update audit_checkpoints set sequence = 5": ("KIND_CHECKPOINT", 5),
    "update audit_checkpoints set sequence = 'x', time_us = 'y', chain = 7": ("KIND_CHECKPOINT", 0),
}


@pytest.mark.parametrize(("statement", "named"), EDITS.items(), ids=EDITS)
async def test_an_edited_file_names_the_first_bad_row(service: Service, statement: str, named: tuple[str, int]) -> None:
    for number in range(6):
        service.change(f"a{number}")
    await service.sealer.close()
    service.edit(statement)
    service.change("later")
    fault = (await service.verified()).fault
    assert (pb.AuditFault.Kind.Name(fault.kind), fault.sequence) == named, fault.description


async def test_a_tail_cut_off_without_a_trace_shows_by_a_checkpoint_kept_elsewhere(service: Service) -> None:
    for number in range(6):
        service.change(f"a{number}")
    await service.sealer.close()
    service.edit("delete from audit where id > 3")
    service.edit("delete from audit_checkpoints")
    service.edit("update sqlite_sequence set seq = 3 where name = 'audit'")
    assert not (await service.verified()).HasField("fault"), "the file alone does not know"
    service.change("later")
    entries = await service.exported()
    rows = [row_of(entry.audit_event) for entry in entries if entry.HasField("audit_event")]
    kept = list(from_lines((service.folder / "checkpoints.jsonl").read_text().splitlines()))[:1]
    fault = verify(rows, [checkpoint_of(kept[0].audit_checkpoint)], Notary("registry", PKI.trust)).fault
    assert fault is not None and fault.kind == "truncated"


async def test_an_edited_row_that_waits_is_not_sealed_and_named(service: Service) -> None:
    service.change("a")
    service.edit("update audit set actor = x'00'")
    await service.sealer.seal()
    fault = (await service.verified()).fault
    assert (fault.kind, fault.row_id) == (pb.AuditFault.KIND_ALTERED, 1)
    with pytest.raises(DataLoss):
        await service.exported()


async def test_a_row_that_waits_too_long_is_a_fault(service: Service) -> None:
    service.change("a")
    service.clock.advance(31)
    assert (await service.verified()).fault.kind == pb.AuditFault.KIND_UNSEALED


async def test_lists_are_paged_filtered_and_of_one_project(service: Service) -> None:
    for number in range(5):
        service.change(f"a{number}")
    service.clock.advance(100)
    service.change("B", "p")
    service.change("other", "q")

    async def listed(**wanted: object) -> list[str]:
        found, token = [], ""
        while True:
            request = pb.ListAuditEventsRequest(parent="projects/p", page_size=2, page_token=token, **wanted)  # type: ignore[arg-type]
            page = await service.servicer.ListAuditEvents(request, call("ListAuditEvents"))
            found += [event.resource.rpartition("/")[2] for event in page.audit_events]
            token = page.next_page_token
            if not token:
                return found

    assert await listed() == ["a0", "a1", "a2", "a3", "a4", "B"]
    assert await listed(resource_prefix="projects/p/items/a") == ["a0", "a1", "a2", "a3", "a4"]
    assert await listed(resource_prefix="projects/p/items/b") == []
    assert await listed(resource_prefix="projects/p/items/%") == []
    assert await listed(action="CreateItem", actor="ann") == ["a0", "a1", "a2", "a3", "a4", "B"]
    assert await listed(actor="an") == []
    assert await listed(start_time={"seconds": START + 100}) == ["B"]
    assert await listed(end_time={"seconds": START + 100}) == ["a0", "a1", "a2", "a3", "a4"]
    for token in ("eHg=", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk=", "wrong", "LTE="):
        with pytest.raises(InvalidArgument):
            await service.servicer.ListAuditEvents(
                pb.ListAuditEventsRequest(parent="projects/p", page_token=token), call("ListAuditEvents")
            )


async def test_checkpoints_are_paged(service: Service) -> None:
    for number in range(3):
        service.change(f"a{number}")
        await service.sealer.mark()
    first = await service.servicer.ListAuditCheckpoints(
        pb.ListAuditCheckpointsRequest(page_size=2), call("ListAuditCheckpoints")
    )
    rest = await service.servicer.ListAuditCheckpoints(
        pb.ListAuditCheckpointsRequest(page_size=2, page_token=first.next_page_token), call("ListAuditCheckpoints")
    )
    assert [item.sequence for item in (*first.audit_checkpoints, *rest.audit_checkpoints)] == [1, 2, 3]
    assert rest.next_page_token == ""


async def test_an_idle_service_commits_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(function: Callable[[sa.Connection], object]) -> None:
        raise AssertionError("a write")

    monkeypatch.setattr(service.database, "write", forbidden)
    await service.sealer.seal()
    await service.sealer.mark()
