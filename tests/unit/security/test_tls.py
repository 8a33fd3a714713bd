"""A certificate on disk: a renewal that was cut in the middle is noticed, and one under way is waited for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from certificates import Pki

from sealane.errors import Unavailable
from sealane.security import enroll, tls

PKI = Pki()


def test_a_pair_that_was_torn_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_PAIR_TRIES", 2)
    identity = PKI.identity(tmp_path / "a", "node", "edge-1")
    assert identity.fits() and identity.pair() == (identity.private_key, identity.certificate_chain)
    (tmp_path / "a" / tls.KEY).write_bytes(tls.new_request()[0])  # killed before the chain was written
    assert not identity.fits()
    with pytest.raises(Unavailable, match="enroll again"):
        identity.pair()


def test_who_starts_with_a_torn_pair_comes_back_by_device_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_PAIR_TRIES", 2)
    PKI.identity(tmp_path, "node", "edge-1")
    config = enroll.EnrollConfig(tmp_path, "", "", tmp_path / tls.TRUST)
    asked: list[str] = []
    monkeypatch.setattr(enroll, "reenroll", lambda config, present: asked.append(present.spiffe_id) or present)
    enroll.ensure(config)
    assert asked == []
    (tmp_path / tls.KEY).write_bytes(tls.new_request()[0])
    enroll.ensure(config)
    assert asked == ["spiffe://sealane/node/edge-1"]


def test_a_reader_waits_for_a_renewal_under_way(tmp_path: Path) -> None:
    identity = PKI.identity(tmp_path / "a", "node", "edge-1")
    other = PKI.identity(tmp_path / "b", "node", "edge-1")
    private, chain = other.pair()
    (tmp_path / "a" / tls.KEY).write_bytes(private)

    def finish() -> None:
        time.sleep(0.05)
        (tmp_path / "a" / tls.CHAIN).write_bytes(chain)

    writer = threading.Thread(target=finish)
    writer.start()
    assert identity.pair() == (private, chain)
    writer.join()
