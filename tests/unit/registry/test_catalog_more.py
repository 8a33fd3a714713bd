"""Models, labels, lists, tombstones, lineage, code and signatures on publish, quotas."""

from __future__ import annotations

import pytest
from registry_site import ADA, BOB, Signer, Site

from sealane.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from sealane.records import listing
from sealane.registry.v1 import model_service_pb2 as pb
from sealane_registry.catalog import File, NewVersion, check_files
from sealane_registry.limits import Defaults, check_bytes
from sealane_registry.model_servicer import MODELS, VERSIONS
from sealane_registry.rows import ModelRow, QuotaRow, Scope, UploadRow, UseRow
from sealane_registry.store_sql import SqlStore


def names(site: Site, filter_: str = "", order_by: str = "", size: int = 100) -> list[str]:
    """Names of all pages."""
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListModelsRequest(page_size=size, page_token=token, filter=filter_, order_by=order_by)
        asked = listing.read(MODELS, request)
        rows = site.store.models("p", asked)
        keys = {"name": "model"}
        token = asked.next_token([(getattr(row, keys.get(asked.order, asked.order)), row.model) for row in rows])
        found += [row.model for row in rows[: asked.size]]
        if not token:
            return found


@pytest.fixture
def five(site: Site) -> Site:
    for place, name in enumerate(["delta", "alpha", "charlie", "bravo", "echo"]):
        site.clock.advance(10 * (place % 2))
        labels = {"team": "vision" if place < 3 else "audio"} | ({"tier": "gold"} if name == "alpha" else {})
        site.catalog.create_model(site.store, ADA, name, f"{name} of the team", labels)
    return site


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        ("", "alpha bravo charlie delta echo"),
        ("name desc", "echo delta charlie bravo alpha"),
        ("create_time", "delta alpha charlie bravo echo"),
        ("create_time desc", "echo bravo charlie alpha delta"),
    ],
)
def test_lists_are_ordered_and_paged(five: Site, size: int, order: str, wanted: str) -> None:
    assert names(five, order_by=order, size=size) == wanted.split()


@pytest.mark.parametrize(
    ("filter_", "wanted"),
    [
        ("labels.team = vision", "alpha charlie delta"),
        ("labels.team != vision", "bravo echo"),
        ("labels.tier:*", "alpha"),
        ('description : "alpha of"', "alpha"),
        ("name >= charlie", None),
        ('labels.team = "vision" AND name != delta', "alpha charlie"),
        ('create_time > "2027-01-15T08:00:05Z"', "alpha bravo charlie echo"),
        ("labels.team = 'x", ""),
    ],
)
def test_lists_are_filtered(five: Site, filter_: str, wanted: str | None) -> None:
    if wanted is None:
        with pytest.raises(InvalidArgument, match="compares name by >="):
            names(five, filter_)
    else:
        assert names(five, filter_) == wanted.split()
        assert names(five, filter_, size=1) == wanted.split()


@pytest.mark.parametrize(
    "filter_",
    [
        *("nothing = 1", "labels = 1", "name", "name = a OR name = b", "NOT name = a", "(name = a)"),
        *("name = a name = b", "create_time = soon", "name = AND", "labels.team < a", "x" * 3000),
        *('name = "a', "name.key = a"),
    ],
)
def test_another_language_is_refused(five: Site, filter_: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        names(five, filter_)
    assert refused.value.field == "filter"


def test_a_page_token_is_of_its_list(five: Site) -> None:
    first = listing.read(MODELS, pb.ListModelsRequest(page_size=1))
    token = first.token("alpha", "alpha")
    for other in ({"filter": "labels.team = vision"}, {"order_by": "create_time"}):
        with pytest.raises(InvalidArgument) as refused:
            listing.read(MODELS, pb.ListModelsRequest(page_token=token, **other))
        assert refused.value.field == "page_token"
    for forged in ("x", "eyJh", listing.write_token("[1]"), listing.write_token('["a", {}]')):
        with pytest.raises(InvalidArgument):
            listing.read(MODELS, pb.ListModelsRequest(page_token=forged))


def test_versions_are_filtered_by_state_and_labels(site: Site) -> None:
    for number in (1, 2, 3):
        row = site.push()
        assert row.number == number
    site.reviews.deprecate(site.store, BOB, Scope("p", "digits", 2), "old")
    version = NewVersion(b"", {"stage": "test"})
    site.catalog.create_version(site.store, ADA, "digits", version, site.variant())

    def numbers(filter_: str) -> list[int]:
        asked = listing.read(VERSIONS, pb.ListVersionsRequest(filter=filter_))
        return [row.number for row in site.store.versions("p", "digits", asked)]

    assert numbers("") == [4, 3, 2, 1]
    assert numbers("state = DEPRECATED") == [2] and numbers("number > 2") == [4, 3]
    assert numbers("labels.stage = test") == [4] and numbers("labels.stage != test") == [3, 2, 1]


def test_an_update_changes_what_it_names_and_by_etag(site: Site) -> None:
    made = site.catalog.create_model(site.store, ADA, "m", "before", {"a": "1"})
    site.clock.advance(5)
    wanted = ModelRow("p", "m", "after", 0, 0, made.etag, {"b": "2"})
    changed = site.catalog.update_model(site.store, BOB, wanted, ("description",))
    assert (changed.description, changed.labels) == ("after", {"a": "1"})
    assert changed.update_time > made.update_time == made.create_time
    with pytest.raises(Aborted):
        site.catalog.update_model(site.store, BOB, wanted, ("labels",))
    site.catalog.update_model(site.store, BOB, ModelRow("p", "m", "", 0, 0, "", {"b": "2"}), ("labels",))
    assert site.catalog.get_model(site.store, "p", "m").labels == {"b": "2"}
    assert names(site, "labels.a:*") == [] and names(site, "labels.b = 2") == ["m"]


def test_a_deleted_name_is_never_given_out_again(site: Site) -> None:
    site.move(site.push())
    site.catalog.delete_model(site.store, ADA, "digits", "")
    assert names(site) == [] and site.store.usage("p").models == 0
    for look in (
        lambda: site.catalog.get_model(site.store, "p", "digits"),
        lambda: site.catalog.find_version(site.store, Scope("p", "digits"), "1"),
        lambda: site.aliases.get(site.store, Scope("p", "digits", name="production")),
        lambda: site.catalog.get_variant(site.store, Scope("p", "digits", 1, "onnx")),
        lambda: site.catalog.delete_model(site.store, ADA, "digits", ""),
    ):
        with pytest.raises(NotFound):
            look()
    with pytest.raises(AlreadyExists) as taken:
        site.catalog.create_model(site.store, ADA, "digits", "")
    assert taken.value.reason == "NAME_WAS_DELETED"


@pytest.mark.parametrize("use", [("version", "digits/1"), ("alias", "digits/production")])
def test_a_model_in_use_is_not_deleted(site: Site, use: tuple[str, str]) -> None:
    site.push()
    site.limits.report_uses(site.store, [UseRow("p", *use, "projects/p/deployments/d")])
    with pytest.raises(FailedPrecondition, match="deployments/d") as refused:
        site.catalog.delete_model(site.store, ADA, "digits", "")
    assert refused.value.reason == "MODEL_IN_USE"
    site.limits.report_uses(site.store, [UseRow("p", use[0], use[1].replace("digits", "digits-2"), "d")])
    site.catalog.delete_model(site.store, ADA, "digits", "")


def test_lineage_names_what_is_there(site: Site) -> None:
    site.push()
    for version, reason in (
        (NewVersion(b"", datasets=["nothing"]), "DATASET_MISSING"),
        (NewVersion(b"", source=Scope("p", "digits", 9)), "SOURCE_MISSING"),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            site.catalog.create_version(site.store, ADA, "digits", version, site.variant())
        assert refused.value.reason == reason


def test_code_needs_the_projects_leave(site: Site) -> None:
    with pytest.raises(FailedPrecondition, match="allow-executable-formats") as refused:
        site.push(executable="a pickle")
    assert refused.value.reason == "EXECUTABLE_FORMAT"
    site.demand(allow_executable_formats=True)
    site.push(executable="a pickle")


def test_signatures_are_demanded_and_verified_on_publish(site: Site) -> None:
    release, stranger = Signer("release"), Signer("stranger")
    site.demand(signing="SIGNED_BY", signer_keys=(release.known, stranger.known), required_signers=("release",))
    files = [site.file("a"), site.file("b/c")]
    for bundles, reason in (
        ([], "SIGNATURE_REQUIRED"),
        ([stranger.sign(files)], "SIGNATURE_REQUIRED"),
        ([release.sign(files[:1])], "SIGNATURE_OTHER_FILES"),
        ([Signer("x").sign(files)], "SIGNER_UNKNOWN"),
        ([release.sign(files).replace(b'"sig": "M', b'"sig": "N')], "SIGNATURE_INVALID"),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            site.push(files=files, bundles=bundles)
        assert refused.value.reason == reason
    version = site.push(files=files, bundles=[release.sign(files)])
    row = site.catalog.get_variant(site.store, Scope("p", "digits", version.number, "onnx"))
    assert [item.key_id for item in row.signatures] == [release.known.key_id]


def test_a_jobs_variant_waits_for_its_signature(site: Site) -> None:
    release = Signer("release")
    files, made = [site.file()], [site.file("int8")]
    site.demand(signing="SIGNED", signer_keys=(release.known,))
    version = site.push(files=files, bundles=[release.sign(files)])
    site.add(version, "int8", files=made, by_job=True)
    place = Scope("p", "digits", version.number, "int8")
    row = site.catalog.get_variant(site.store, place)
    digests = {file.path: file.sha256 for file in made}
    site.signatures.attach(site.store, ADA, row, release.sign(made), digests)
    again = site.catalog.get_variant(site.store, place)
    assert len(again.signatures) == 1
    site.signatures.attach(site.store, ADA, again, release.sign(made), digests)
    assert len(site.catalog.get_variant(site.store, place).signatures) == 1, "one of each key"


def test_quotas_of_models_and_versions(store: SqlStore) -> None:
    site = Site(store, Defaults(max_models=2, max_versions=1))
    site.push("a")
    with pytest.raises(ResourceExhausted) as versions:
        site.push("a")
    assert versions.value.reason == "STORAGE_QUOTA"
    site.push("b")
    with pytest.raises(ResourceExhausted):
        site.push("c")
    site.catalog.delete_model(store, ADA, "a", "")
    site.push("c")
    site.limits.set_quota(store, ADA, QuotaRow(max_versions=2))
    site.push("c")


def test_quotas_of_bytes_count_what_is_under_way(site: Site) -> None:
    site.limits.set_quota(site.store, ADA, QuotaRow(max_bytes=100))
    site.store.add_artifact("p", "a" * 64, 50, 0.0)
    check_bytes(site.store, "p", 50, Defaults())
    site.store.add_upload(UploadRow("p", "u", "b" * 64, 30, 0.0))
    check_bytes(site.store, "p", 20, Defaults())
    with pytest.raises(ResourceExhausted):
        check_bytes(site.store, "p", 21, Defaults())
    check_bytes(site.store, "q", 10**12, Defaults())
    site.store.add_artifact("p", "b" * 64, 30, 0.0)
    check_bytes(site.store, "p", 20, Defaults())
    assert site.store.usage("p").bytes == 80 and site.store.drop_artifact("p", "b" * 64)
    assert site.store.usage("p").bytes == 50


BAD_PATHS = {
    "one name in two ways of writing it": ["caf\u00e9", "cafe\u0301"],
    "a file that is also a folder": ["a", "a/b"],
    "too deep": ["/".join("a" * 1 for _ in range(17))],
    "a device": ["aux.bin"],
    "a device below": ["x/NUL"],
    "a pipe": ["a|b"],
    "a blank in front": [" a"],
    "long in bytes": ["\u00e9" * 300],
    "a direction mark": ["a\u202eb"],
}


@pytest.mark.parametrize("case", BAD_PATHS)
def test_paths_that_mean_two_things_are_refused(case: str) -> None:
    with pytest.raises(InvalidArgument):
        check_files([File(path, "a" * 64, 1) for path in BAD_PATHS[case]])


def test_ten_thousand_files_and_no_more() -> None:
    check_files([File(f"f{place}", "a" * 64, 1) for place in range(10_000)])
    with pytest.raises(InvalidArgument):
        check_files([File(f"f{place}", "a" * 64, 1) for place in range(10_001)])


def test_labels_are_bounded(site: Site) -> None:
    for labels in ({"A": "x"}, {"a": "x" * 257}, {"a": "\n"}, {f"a{place}": "" for place in range(65)}):
        with pytest.raises(InvalidArgument):
            site.catalog.create_model(site.store, ADA, "m", "", labels)


def test_numbers_beyond_all_that_there_are(site: Site) -> None:
    site.push()
    huge = 10**17
    with pytest.raises(NotFound):
        site.catalog.find_version(site.store, Scope("p", "digits"), str(huge))
    assert site.store.variants([Scope("p", "digits", huge)]) == {Scope("p", "digits", huge): []}
    asked = listing.read(VERSIONS, pb.ListVersionsRequest(filter=f"number < {huge} AND number > -{huge}"))
    assert len(site.store.versions("p", "digits", asked)) == 1
    behind = listing.read(VERSIONS, pb.ListVersionsRequest(page_token=asked_token(huge)))
    assert len(site.store.versions("p", "digits", behind)) == 1


def asked_token(number: int) -> str:
    """A token that somebody made up."""
    return listing.read(VERSIONS, pb.ListVersionsRequest()).token(number)
