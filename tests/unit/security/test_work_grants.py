"""A node shows the scheduler's grant; nothing else passes for one."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest
from certificates import Pki

from sealane.clock import ManualClock
from sealane.errors import PermissionDenied
from sealane.security import jws, work_grants
from sealane.security.revocations import Kind, Revocations, Revoked
from sealane.security.work_grants import LIFETIME_SECONDS, WorkGrant, WorkGrants

GRANT = WorkGrant("edge-1", "p", "projects/p/models/m/versions/1/variants/litert", ("a" * 64,), upload=True)
CLOCK_START = time.time()
PKI = Pki()


class Site:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(CLOCK_START)
        self.revocations = Revocations(self.clock)
        self.scheduler = PKI.identity(folder / "scheduler", "service", "scheduler")
        self.grants = WorkGrants(lambda: PKI.root_pem, self.revocations, self.clock)
        self.signed = work_grants.issue(GRANT, self.scheduler, self.clock.now())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_grant_says_what_it_was_given(site: Site) -> None:
    assert site.grants.verify(site.signed, "edge-1") == GRANT
    assert len(site.signed) < 4096, "it travels in metadata"


def test_it_is_good_for_a_week_though_the_certificate_is_good_for_a_day(site: Site) -> None:
    site.clock.advance(LIFETIME_SECONDS - 1)
    assert site.grants.verify(site.signed, "edge-1") == GRANT
    site.clock.advance(2)
    with pytest.raises(PermissionDenied, match="over"):
        site.grants.verify(site.signed, "edge-1")


def test_an_expired_leaf_does_not_sign_for_years(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_grants, "LIFETIME_SECONDS", 50 * 365 * 86_400)
    signed = work_grants.issue(GRANT, site.scheduler, site.clock.now())
    monkeypatch.undo()
    with pytest.raises(PermissionDenied, match="over"):
        site.grants.verify(signed, "edge-1")


def test_another_nodes_and_none_are_refused(site: Site) -> None:
    for grant, node in ((site.signed, "edge-2"), ("", "edge-1"), ("a.b.c", "edge-1"), (site.signed[:-2], "edge-1")):
        with pytest.raises(PermissionDenied):
            site.grants.verify(grant, node)


@pytest.mark.parametrize(("kind", "subject"), [("node", "edge-1"), ("service", "registry"), ("node", "scheduler")])
def test_only_the_scheduler_signs(site: Site, tmp_path: Path, kind: str, subject: str) -> None:
    other = PKI.identity(tmp_path / "other", kind, subject)
    with pytest.raises(PermissionDenied):
        site.grants.verify(work_grants.issue(GRANT, other, site.clock.now()), "edge-1")


def test_another_authority_is_no_authority(site: Site, tmp_path: Path) -> None:
    foreign = Pki().identity(tmp_path / "foreign", "service", "scheduler")
    with pytest.raises(PermissionDenied):
        site.grants.verify(work_grants.issue(GRANT, foreign, site.clock.now()), "edge-1")


def test_no_part_can_be_changed(site: Site) -> None:
    head, body, signature = site.signed.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    for name, value in (("sub", "edge-2"), ("project", "q"), ("digests", ["b" * 64]), ("exp", claims["exp"] + 1)):
        changed = jws.encode(json.dumps(claims | {name: value}, separators=(",", ":")).encode())
        with pytest.raises(PermissionDenied):
            site.grants.verify(f"{head}.{changed}.{signature}", "edge-2" if name == "sub" else "edge-1")
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    for name, value in (("alg", "none"), ("typ", "at+jwt"), ("x5c", []), ("x5c", header["x5c"][:1] * 4)):
        changed = jws.encode(json.dumps(header | {name: value}, separators=(",", ":")).encode())
        with pytest.raises(PermissionDenied):
            site.grants.verify(f"{changed}.{body}.{signature}", "edge-1")


def test_grants_of_an_evicted_scheduler_and_a_distrusted_intermediate_are_dead(site: Site) -> None:
    later = site.clock.now() + 60
    site.revocations.take(1, [Revoked(Kind.PEER, "spiffe://sealane/service/scheduler", number=later)])
    with pytest.raises(PermissionDenied):
        site.grants.verify(site.signed, "edge-1")
    site.revocations.take(2, [Revoked(Kind.ISSUER, PKI.issuer_key_id)], snapshot=True)
    with pytest.raises(PermissionDenied):
        site.grants.verify(site.signed, "edge-1")


def test_one_from_the_future_is_refused(site: Site) -> None:
    signed = work_grants.issue(GRANT, site.scheduler, site.clock.now() + 3600)
    with pytest.raises(PermissionDenied):
        site.grants.verify(signed, "edge-1")
