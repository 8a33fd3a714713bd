"""An S3 server behind a network that fails: nothing half is ever seen, and a repeat succeeds."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from object_servers import FaultyProxy, new_bucket, reach

from sealane.errors import DataLoss, ResourceExhausted, SealaneError, Unavailable
from sealane_registry.blob_objects import PART_BYTES, BucketStore
from sealane_registry.blobs import Blobs
from sealane_registry.plain_copies import PlainForms
from sealane_registry.spool import Spool
from sealane_registry.store import UploadRow

KEY = b"k" * 32
SMALL = random.Random(5).randbytes(300_000)
LARGE = random.Random(6).randbytes(2 * PART_BYTES + 54_321)


class Site:
    """A spool, and blobs in a bucket that is also reached without the proxy."""

    def __init__(self, s3: str, proxy: FaultyProxy, folder: Path) -> None:
        url = new_bucket(s3)
        self.proxy = proxy
        self.spool = Spool(folder / "incoming", PlainForms(KEY))
        self.blobs = Blobs(BucketStore(reach(url, proxy.address, folder, timeout=2.0)), KEY)
        self.direct = BucketStore(reach(url, s3, folder))

    def uploaded(self, content: bytes, name: str = "u") -> UploadRow:
        row = UploadRow("p", name, hashlib.sha256(content).hexdigest(), len(content), 0.0)
        offset = self.spool.open(row)
        while offset < len(content):
            offset = self.spool.append(row, offset, content[offset : offset + (1 << 20)])
        return row

    def publish(self, row: UploadRow) -> None:
        self.blobs.publish(self.spool.finish(row))

    def read(self, row: UploadRow) -> bytes:
        return b"".join(data for _, data in self.blobs.read(row.sha256, 0, 0))


@pytest.fixture
def site(s3: str, proxy: FaultyProxy, tmp_path: Path) -> Site:
    return Site(s3, proxy, tmp_path)


def on(method: str, part: str, fault: str, times: int = 1 << 30):
    """A rule for requests of a method whose path has a part."""
    left = [times]

    def rule(asked: str, path: str) -> str:
        if asked != method or part not in path or not left[0]:
            return ""
        left[0] -= 1
        return fault

    return rule


FAULTS = ["status:500", "status:503", "cut request", "lost answer", "slow:3"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("content", "method", "part"),
    [
        (SMALL, "PUT", "sha256"),
        (LARGE, "POST", "uploads"),
        (LARGE, "PUT", "partNumber=1"),
        (LARGE, "PUT", "partNumber=3"),
        (LARGE, "POST", "uploadId"),
    ],
    ids=["put", "begin", "first part", "last part", "complete"],
)
def test_a_publish_that_fails_shows_nothing_and_a_repeat_succeeds(
    site: Site, content: bytes, method: str, part: str, fault: str
) -> None:
    row = site.uploaded(content)
    site.proxy.rule = on(method, part, fault)
    refused: SealaneError | None = None
    try:
        site.publish(row)
    except Unavailable as error:
        refused = error
    assert site.proxy.hits, "the fault was met"
    visible = [found for found in site.direct.list("sha256/") if not found.key.endswith(".chunks")]
    if refused is not None:
        assert refused.retry_after is not None
    # A completed request whose answer was lost did store the blob: whole, then.
    assert [found.size for found in visible] in ([], [len(content)])
    assert refused is not None or visible
    if fault in ("status:500", "status:503", "cut request"):
        assert refused is not None and not visible
    site.proxy.rule = lambda asked, path: ""
    site.publish(row)
    assert site.read(row) == content


@pytest.mark.parametrize("fault", ["status:500", "cut request", "slow:3"])
def test_one_failure_is_tried_again_by_itself(site: Site, fault: str) -> None:
    row = site.uploaded(SMALL)
    site.proxy.rule = on("PUT", row.sha256, fault, times=1)
    try:
        site.publish(row)
    except Unavailable:  # requests that change something are not all repeated after a timeout
        site.publish(row)
    assert site.read(row) == SMALL


@pytest.mark.parametrize("status", ["status:507"])
def test_a_full_store_says_so(site: Site, status: str) -> None:
    row = site.uploaded(SMALL)
    site.proxy.rule = on("PUT", "sha256", status)
    with pytest.raises(ResourceExhausted) as refused:
        site.publish(row)
    assert refused.value.retry_after
    site.proxy.rule = lambda asked, path: ""
    site.publish(row)
    assert site.read(row) == SMALL


def test_a_store_that_refuses_the_registry_is_not_the_callers_fault(site: Site) -> None:
    row = site.uploaded(SMALL)
    site.proxy.rule = on("PUT", "sha256", "status:403")
    with pytest.raises(Unavailable) as refused:
        site.publish(row)
    assert refused.value.reason == "STORE_REFUSED"


def test_a_read_that_is_cut_goes_on_where_it_was_cut(site: Site) -> None:
    row = site.uploaded(LARGE)
    site.publish(row)
    site.proxy.rule = on("GET", f"/{row.sha256}", "cut answer", times=3)
    got = b"".join(data for _, data in site.blobs.read(row.sha256, 0, 0))
    assert got == LARGE and site.proxy.hits


@pytest.mark.parametrize("fault", ["cut answer", "status:500", "slow:3", "lost answer"])
def test_a_read_that_fails_for_good_gave_right_bytes_alone(site: Site, fault: str) -> None:
    row = site.uploaded(LARGE)
    site.publish(row)
    site.proxy.rule = on("GET", f"/{row.sha256}", fault)
    got = b""
    with pytest.raises(Unavailable):
        for _, data in site.blobs.read(row.sha256, 0, 0):
            got += data
            if len(got) > PART_BYTES:  # each answer is cut at its half, so it would creep on for long
                site.proxy.rule = on("GET", f"/{row.sha256}", "status:500")
    assert LARGE.startswith(got) and len(got) < len(LARGE)
    site.proxy.rule = lambda asked, path: ""
    assert site.blobs.has(row.sha256), "a failing network is no damage"
    assert site.read(row) == LARGE


def test_out_of_reach_is_not_absent(site: Site) -> None:
    row = site.uploaded(SMALL)
    site.publish(row)
    site.proxy.rule = on("HEAD", "", "status:500")
    with pytest.raises(Unavailable):
        site.blobs.has(row.sha256)
    with pytest.raises(Unavailable):
        site.read(row)


def test_an_object_that_is_gone_or_altered_is_lost(site: Site) -> None:
    row = site.uploaded(LARGE)
    site.publish(row)
    key = f"sha256/{row.sha256[:2]}/{row.sha256}"
    altered = bytearray(LARGE)
    altered[PART_BYTES] ^= 1
    site.direct.put_bytes(key, bytes(altered))
    got = b""
    with pytest.raises(DataLoss) as lost:
        for _, data in site.blobs.read(row.sha256, 0, 0):
            got += data
    assert lost.value.reason == "BLOB_CORRUPT" and LARGE.startswith(got)
    assert len(list(site.direct.list("corrupt/"))) == 1 and not site.blobs.has(row.sha256)
    with pytest.raises(DataLoss):
        site.read(row)
    site.publish(row)
    assert site.read(row) == LARGE
