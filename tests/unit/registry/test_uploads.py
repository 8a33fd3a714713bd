"""Uploads end once: repeats are answered alike, latecomers are sent back, leftovers are swept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from sealane.clock import ManualClock
from sealane.errors import Aborted, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from sealane.records import tables
from sealane.records.database import Database
from sealane.records.transactions import Transactions
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.rpc.call import Call, Identity, Peer
from sealane.rpc.policy import methods_of
from sealane.security.revocations import Revocations
from sealane.security.work_grants import WorkGrants
from sealane_registry.access import Access
from sealane_registry.artifact_servicer import UPLOAD_SECONDS, ArtifactServicer, Files
from sealane_registry.blob_folder import FolderStore
from sealane_registry.blobs import Blobs
from sealane_registry.plain_copies import PlainForms
from sealane_registry.spool import Spool
from sealane_registry.store_sql import SqlStore, metadata
from sealane_registry.upkeep import Scrubbing

CONTENT = b"the weights"
SHA = hashlib.sha256(CONTENT).hexdigest()
KEY = b"k" * 32


#: Nobody of these tests is a node.
ACCESS = Access(WorkGrants(lambda: b"", Revocations(ManualClock()), ManualClock()))


class Site:
    """A servicer on a real folder and database."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.incoming, self.cas, self.clock = folder / "incoming", folder / "cas", ManualClock()
        self.records = Transactions(database, SqlStore, self.clock)
        self.blobs = Blobs(FolderStore(self.cas), KEY)
        files = Files(Spool(self.incoming, PlainForms(KEY)), self.blobs)
        self.servicer = ArtifactServicer(self.records, files, ACCESS, self.clock, stall=0.2)

    async def start(self, project: str = "p", size: int = len(CONTENT)) -> pb.Upload:
        request = pb.StartUploadRequest(parent=f"projects/{project}", sha256=SHA, size_bytes=size)
        return await self.servicer.StartUpload(request, call(project))

    async def send(self, name: str, data: bytes = CONTENT, offset: int = 0, *, project: str = "p", hang: bool = False):
        async def stream() -> AsyncIterator[bytes]:
            yield pb.UploadChunksRequest(name=name, offset=offset, data=data).SerializeToString()
            if hang:
                await asyncio.sleep(60)

        return await self.servicer.UploadChunks(stream(), call(project))

    async def finish(self, name: str, project: str = "p") -> pb.Artifact:
        return await self.servicer.FinishUpload(pb.FinishUploadRequest(name=name), call(project))


def call(project: str) -> Call:
    method = next(iter(methods_of(pb.DESCRIPTOR.services_by_name["ArtifactService"])))
    return Call(method, {}, Peer(), 0.0, identity=Identity("somebody", project))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    def prepare(connection) -> None:
        metadata.create_all(connection)
        tables.metadata.create_all(connection)

    database = Database.at(tmp_path / "registry.db")
    database.start(prepare)
    yield Site(tmp_path, database)
    database.close()


async def test_a_finished_upload_takes_no_chunk_and_finishes_again(site: Site) -> None:
    name = (await site.start()).name
    await site.send(name)
    first = await site.finish(name)
    with pytest.raises(Aborted) as late:
        await site.send(name)
    assert late.value.reason == "UPLOAD_ENDED"
    assert not list(site.incoming.iterdir())
    assert await site.finish(name) == first
    assert (await site.start()).complete


async def test_the_second_of_two_uploads_of_one_content_finishes_too(site: Site) -> None:
    one, two = await site.start(), await site.start(size=99)
    assert one.name != two.name
    await site.send(one.name)
    assert await site.finish(one.name) == await site.finish(two.name)
    assert not list(site.incoming.iterdir())


async def test_knowing_a_digest_gives_nobody_anothers_artifact(site: Site) -> None:
    name = (await site.start()).name
    await site.send(name)
    await site.finish(name)
    stolen = (await site.start("q")).name
    await site.send(stolen, b"x" * len(CONTENT), project="q")
    with pytest.raises(FailedPrecondition, match="digest"):
        await site.finish(stolen, "q")
    with pytest.raises(Aborted):
        await site.finish(stolen, "q")
    assert not (await site.start("q")).complete


async def test_a_client_that_stalls_is_ended_and_keeps_what_arrived(site: Site) -> None:
    name = (await site.start()).name
    with pytest.raises(DeadlineExceeded, match="no chunk"):
        await site.send(name, CONTENT[:4], hang=True)
    assert (await site.start()).offset == 4
    await site.send(name, CONTENT[4:], 4)
    assert (await site.finish(name)).sha256 == SHA


async def test_the_sweep_takes_old_uploads_and_stray_files_alone(site: Site) -> None:
    old = (await site.start("q")).name
    site.clock.advance(UPLOAD_SECONDS + 1)
    fresh = (await site.start()).name
    await site.send(fresh, CONTENT[:4])
    (site.incoming / "stray").write_bytes(b"x")
    await site.servicer.sweep()
    assert [path.name for path in site.incoming.iterdir()] == [fresh.rpartition("/")[2]]
    assert (await site.start()).offset == 4
    with pytest.raises(NotFound):
        await site.finish(old, "q")


async def audited(site: Site) -> list[tuple[str, str]]:
    """Project and action of all rows."""
    query = sa.select(tables.audit.c.project, tables.audit.c.action).order_by(tables.audit.c.id)
    rows = await site.records.read(lambda store: store._connection.execute(query).all())
    return [(row.project, row.action) for row in rows]


async def test_what_the_scrub_finds_is_recorded_for_all_that_have_it(site: Site) -> None:
    for project in ("p", "q"):
        name = (await site.start(project)).name
        await site.send(name, project=project)
        await site.finish(name, project)
    path = site.cas / "sha256" / SHA[:2] / SHA
    path.write_bytes(CONTENT[:-1] + b"S")
    scrubbing = Scrubbing(site.blobs, site.records, site.clock, 1e9)
    task = asyncio.create_task(scrubbing.run(3600.0))
    while not scrubbing.scrub.counts.rounds:
        await asyncio.sleep(0.01)
    task.cancel()
    assert (await audited(site))[2:] == [("p", "SetArtifactAside"), ("q", "SetArtifactAside")]
    again = await site.start()  # neither finds it any more, and either heals it for both
    assert not again.complete
    await site.send(again.name)
    await site.finish(again.name)
    assert (await site.start("q")).complete


async def test_a_store_out_of_reach_keeps_the_upload_for_a_repeat(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    name = (await site.start()).name
    await site.send(name)

    def away(done: object) -> None:
        raise Unavailable("out of reach", retry_after=5.0)

    with monkeypatch.context() as patch:
        patch.setattr(site.blobs, "publish", away)
        with pytest.raises(Unavailable):
            await site.finish(name)
    assert (await site.start()).offset == len(CONTENT), "nothing is sent again"
    assert (await site.finish(name)).sha256 == SHA
