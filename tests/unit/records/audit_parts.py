"""A chain of audit rows, a service's certificate, and checkpoints, without any service."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sealane.security import audit_checkpoint, tls
from sealane.security.audit_checkpoint import Checkpoint
from sealane.security.audit_log import GENESIS, AuditRow
from sealane_auth import authority

START = 1_800_000_000
NOW = datetime.datetime.fromtimestamp(START, datetime.UTC)


@dataclass(frozen=True)
class Pki:
    """A root and what it signs."""

    root: authority.Signer
    intermediate: authority.Signer

    @classmethod
    def make(cls) -> Pki:
        root = authority.make_root(NOW)
        return cls(root, authority.make_intermediate(root, NOW))

    @property
    def trust(self) -> bytes:
        return self.root.certificate_pem

    def identity(self, directory: Path, names: authority.LeafNames, now: datetime.datetime = NOW) -> tls.PeerIdentity:
        """A leaf on disk, as a service has it."""
        key, request = tls.new_request()
        leaf: x509.Certificate = authority.issue_leaf(
            self.intermediate, request, names, authority.Validity(now, now + authority.LEAF_LIFE)
        )
        chain = leaf.public_bytes(serialization.Encoding.PEM) + self.intermediate.certificate_pem
        return tls.store(directory, key, tls.Issued(chain, self.trust, names.spiffe_id, {}))

    def service(self, directory: Path, name: str = "registry") -> tls.PeerIdentity:
        return self.identity(directory, authority.service_names(name))


def rows(count: int, service: str = "registry") -> list[AuditRow]:
    """A sealed chain."""
    made, previous = [], GENESIS
    for number in range(1, count + 1):
        row = AuditRow(
            id=number,
            time_ns=(START + number) * 10**9,
            project=f"project-{number % 3}",
            actor=f"account-{number % 7}",
            action=("CreateModel", "MoveAlias", "CreateDeployment")[number % 3],
            resource=f"projects/project-{number % 3}/models/m{number}",
            request_id=f"request-{number}",
            details=json.dumps({"version": str(number)}),
        )
        previous = row.sealed_hash(service, number, previous)
        made.append(replace(row, sequence=number, hash=previous))
    return made


def resealed(chain: list[AuditRow], start: int, service: str = "registry") -> list[AuditRow]:
    """The same rows with fitting sequences and hashes from an index on, as somebody who knows the form can make."""
    made = chain[:start]
    previous = made[-1].hash if made else GENESIS
    for number, row in enumerate(chain[start:], start + 1):
        previous = row.sealed_hash(service, number, previous)
        made.append(replace(row, sequence=number, hash=previous))
    return made


def checkpoint(row: AuditRow, identity: tls.PeerIdentity, service: str = "registry") -> Checkpoint:
    """The service's word about a row."""
    assert row.sequence is not None
    return audit_checkpoint.sign(Checkpoint(service, row.sequence, row.hash, row.time_ns // 1000 + 5), identity)
