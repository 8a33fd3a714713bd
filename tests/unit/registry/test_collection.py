"""What is collected, and what never is."""

from __future__ import annotations

from registry_site import ADA, JOBS, Site
from test_datasets import new

from sealane_registry.collection import GRACE_SECONDS, drop_artifacts, drop_blobs
from sealane_registry.rows import Scope, UseRow

DAY = GRACE_SECONDS + 1


def report(site: Site, *rows: UseRow) -> None:
    site.clock.advance(1)
    site.limits.report_uses(site.store, rows)


def held(site: Site, *digests: str) -> list[bool]:
    return [site.store.artifact_size("p", digest) is not None for digest in digests]


def test_only_what_nothing_refers_to_goes_and_only_when_it_is_old(site: Site) -> None:
    loose, kept = site.file(), [site.file("a"), site.file("b")]
    site.push(files=kept)
    dataset = new(site)
    site.datasets.create(site.store, ADA, dataset)
    shards = [item.file.sha256 for item in dataset.shards]
    report(site)
    assert drop_artifacts(site.store, site.clock) == (0, 0)
    site.clock.advance(DAY)
    young = site.file()
    assert drop_artifacts(site.store, site.clock) == (1, loose.size)
    assert held(site, loose.sha256, young.sha256, *(file.sha256 for file in kept), *shards) == [False] + [True] * 5


def test_a_file_that_was_uploaded_again_is_young_again(site: Site) -> None:
    loose = site.file()
    site.clock.advance(DAY)
    site.store.add_artifact("p", loose.sha256, loose.size, site.clock.now())
    assert drop_artifacts(site.store, site.clock) == (0, 0)


def test_a_deleted_models_files_wait_for_a_report_after_it(site: Site) -> None:
    files = [site.file()]
    site.push(files=files)
    report(site)
    site.clock.advance(DAY)
    site.catalog.delete_model(site.store, ADA, "digits", "")
    site.clock.advance(DAY)
    assert drop_artifacts(site.store, site.clock) == (0, 0), "nobody told what is in use since"
    report(site)
    assert drop_artifacts(site.store, site.clock) == (1, files[0].size)


def test_what_a_deployment_or_job_refers_to_stays_whatever_was_deleted(site: Site) -> None:
    files, inputs = [site.file()], site.file()
    site.push(files=files)
    site.clock.advance(DAY)
    site.catalog.delete_model(site.store, ADA, "digits", "")
    report(site, UseRow("p", "version", "digits/1", "d"), UseRow("p", "artifact", inputs.sha256, "j"))
    assert drop_artifacts(site.store, site.clock) == (0, 0)
    report(site, UseRow("p", "version", "digits/11", "d"), UseRow("q", "artifact", inputs.sha256, "j"))
    assert drop_artifacts(site.store, site.clock) == (2, files[0].size + inputs.size)


def test_files_shared_with_another_version_or_project_stay(site: Site) -> None:
    files = [site.file()]
    site.push("one", files=files)
    site.push("two", files=files)
    site.store.add_artifact("q", files[0].sha256, files[0].size, site.clock.now())
    site.clock.advance(DAY)
    site.catalog.delete_model(site.store, ADA, "one", "")
    report(site)
    drop_artifacts(site.store, site.clock)
    assert held(site, files[0].sha256) == [True]
    assert site.store.artifact_size("q", files[0].sha256) is None, "of no use in the other project"
    site.catalog.delete_model(site.store, ADA, "two", "")
    report(site)
    drop_artifacts(site.store, site.clock)
    assert not site.store.has_content(files[0].sha256)


def test_what_goes_is_in_the_audit_log(site: Site) -> None:
    loose = site.file()
    site.clock.advance(DAY)
    drop_artifacts(site.store, site.clock)
    actions = [(row.action, row.resource) for row in site.store.changes("p", 0, 10)]
    assert actions == [("CollectArtifact", f"projects/p/artifacts/{loose.sha256}")]


class _Blob:
    def __init__(self, sha256: str, modified: float) -> None:
        self.sha256, self.modified = sha256, modified


class _Blobs:
    def __init__(self, *blobs: _Blob) -> None:
        self.there = list(blobs)

    def list(self):
        return iter(list(self.there))

    def remove(self, blob: _Blob, free) -> bool:
        if free():
            self.there.remove(blob)
        return blob not in self.there


def test_blobs_of_nobody_go_once_they_are_old(site: Site) -> None:
    now = site.clock.now()
    mine = site.file().sha256
    old, young, used = _Blob("a" * 64, now - DAY), _Blob("b" * 64, now - 10), _Blob(mine, now - DAY)
    blobs = _Blobs(old, young, used)
    assert drop_blobs(blobs, site.clock, lambda digest: not site.store.has_content(digest)) == 1
    assert blobs.there == [young, used]


def test_a_jobs_source_stays(site: Site) -> None:
    version = site.push()
    assert site.store.version(Scope("p", "digits", version.number)) is not None
    report(site, UseRow("p", "version", "digits/1", JOBS.subject))
    assert site.store.holders("p", "version", "digits/1") == [JOBS.subject]
    assert site.store.holders("p", "version", "digits", below=True) == [JOBS.subject]
    assert site.store.holders("p", "version", "digit", below=True) == []
