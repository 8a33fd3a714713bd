"""Whose word a checkpoint is: the service's own, by the certificate it had then, and nobody else's."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import pytest
from audit_parts import NOW, START, Pki, checkpoint, rows

from sealane.errors import Unavailable
from sealane.security import audit_checkpoint, tls
from sealane.security.audit_checkpoint import Checkpoint, CheckpointRefused, Notary
from sealane.security.audit_log import Kind, verify
from sealane_auth import authority

PKI = Pki.make()
CHAIN = rows(5)


@pytest.fixture
def good(tmp_path: Path) -> Checkpoint:
    return checkpoint(CHAIN[-1], PKI.service(tmp_path))


def refused(mark: Checkpoint, service: str = "registry", trust: bytes = b"") -> str:
    with pytest.raises(CheckpointRefused) as error:
        Notary(service, trust or PKI.trust).check(mark)
    return str(error.value)


def test_the_services_own_word_holds(good: Checkpoint) -> None:
    Notary("registry", PKI.trust).check(good)
    assert verify(CHAIN, [good], Notary("registry", PKI.trust)).fault is None


@pytest.mark.parametrize(
    "change",
    [{"sequence": 4}, {"hash": bytes(32)}, {"time_us": START * 10**6 + 1}, {"signature": b"no"}, {"signature": b""}],
)
def test_a_changed_checkpoint_does_not_verify(good: Checkpoint, change: dict[str, object]) -> None:
    changed = replace(good, **change)  # type: ignore[arg-type]  # one field each
    assert "signature" in refused(changed)
    fault = verify(CHAIN, [changed], Notary("registry", PKI.trust)).fault
    assert fault is not None and (fault.kind, fault.sequence) == (Kind.CHECKPOINT, changed.sequence)


def test_another_root_another_service_a_node_and_no_certificate(good: Checkpoint, tmp_path: Path) -> None:
    assert "root" in refused(good, trust=Pki.make().trust)
    assert "not of scheduler" in refused(good, service="scheduler")
    scheduler = PKI.service(tmp_path / "s", "scheduler")
    assert "not that of registry" in refused(checkpoint(CHAIN[-1], scheduler))
    node = PKI.identity(tmp_path / "n", authority.node_names("registry"))
    assert "not that of registry" in refused(checkpoint(CHAIN[-1], node))
    assert "root" in refused(replace(good, chain=b""))
    leaf_alone = good.chain.partition(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    assert "root" in refused(replace(good, chain=leaf_alone))


def test_certificates_are_judged_by_the_checkpoints_own_time(tmp_path: Path) -> None:
    """A log of last year verifies although every leaf of then has expired; a time outside the leaf's life does not."""
    identity = PKI.service(tmp_path)
    day = 24 * 3600 * 10**6

    def at(time_us: int) -> Checkpoint:
        return audit_checkpoint.sign(Checkpoint("registry", 5, CHAIN[-1].hash, time_us), identity)

    notary = Notary("registry", PKI.trust)
    notary.check(at(START * 10**6 + day - 1))
    for outside in (START * 10**6 + day + 10**6, START * 10**6 - 600 * 10**6, -1, 2**62):
        with pytest.raises(CheckpointRefused):
            notary.check(at(outside))
        assert refused(at(outside))


def test_checkpoints_of_renewed_certificates_stand_in_one_log(tmp_path: Path) -> None:
    later = NOW + datetime.timedelta(hours=20)
    old = checkpoint(CHAIN[1], PKI.service(tmp_path))
    renewed = PKI.identity(tmp_path, authority.service_names("registry"), later)
    new = audit_checkpoint.sign(Checkpoint("registry", 5, CHAIN[-1].hash, int(later.timestamp() * 10**6) + 1), renewed)
    assert verify(CHAIN, [old, new], Notary("registry", PKI.trust)).checkpoints == 2


def test_a_key_that_does_not_fit_its_certificate_signs_nothing(tmp_path: Path) -> None:
    """Between the two files of a renewal."""
    identity = PKI.service(tmp_path)
    (tmp_path / tls.KEY).write_bytes(tls.new_request()[0])
    with pytest.raises(Unavailable):
        checkpoint(CHAIN[-1], identity)
