"""The authority on disk: root and intermediate with their keys under the key file, and the change of intermediate."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sealane.errors import FailedPrecondition
from sealane.security.certificate import key_id_of
from sealane.security.key_file import KeyFile, write_secret
from sealane_auth import authority
from sealane_auth.authority import Signer

_ROOT, _INTERMEDIATE = "root", "intermediate"


@dataclass(frozen=True, slots=True)
class CertificateLives:
    """How long certificates hold.

    Args:
        intermediate: the certificate that signs leaves.
        leaf: of services, nodes and accounts; renewed at two thirds.
    """

    intermediate: datetime.timedelta = authority.INTERMEDIATE_LIFE
    leaf: datetime.timedelta = authority.LEAF_LIFE


class Authority:
    """Signs leaves with the present intermediate.

    The root's key lies beside it (``root.key``) until an operator takes it offline. It is needed again when two thirds
    of the intermediate's life are over: a start, or a rotation, with it in place makes the next one.
    """

    def __init__(self, directory: Path, keyfile: KeyFile, lives: CertificateLives | None = None) -> None:
        self._directory = directory
        self._keyfile = keyfile
        self.lives = lives or CertificateLives()
        self.signer: Signer

    @property
    def trust_bundle(self) -> bytes:
        """Root certificates, PEM."""
        return (self._directory / "root.pem").read_bytes()

    @property
    def intermediates(self) -> list[x509.Certificate]:
        """The present intermediate and those before it, whose leaves may still be about."""
        former = [x509.load_pem_x509_certificate(path.read_bytes()) for path in self._directory.glob("former-*.pem")]
        return [self.signer.certificate, *former]

    def open(self, now: datetime.datetime) -> None:
        """Make what is missing, load the rest; the intermediate is changed where it is old and the root is at hand.

        Raises:
            FailedPrecondition: there is no intermediate and no root key to make one, or the key file is another.
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self._directory / "root.pem").exists():
            self._store(_ROOT, authority.make_root(now))
        if not (self._directory / "intermediate.pem").exists():
            self.rotate(now)
        self.signer = self._load(_INTERMEDIATE)
        if self.due(now) and (self._directory / "root.key").exists():
            self.rotate(now)

    def due(self, now: datetime.datetime) -> bool:
        """Whether two thirds of the intermediate's life are over."""
        certificate = self.signer.certificate
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return now >= certificate.not_valid_before_utc + life * 2 / 3

    def rotate(self, now: datetime.datetime) -> str:
        """Change the intermediate; the key identifier of the one before, empty for the first.

        Raises:
            FailedPrecondition: the root's key is kept elsewhere.
        """
        if not (self._directory / "root.key").exists():
            raise FailedPrecondition(
                f"the root's key is not at {self._directory / 'root.key'}; bring it there for the change",
                reason="ROOT_OFFLINE",
            )
        before = key_id_of(self.signer.certificate) if hasattr(self, "signer") else ""
        if before:
            write_secret(self._directory / f"former-{before}.pem", self.signer.certificate_pem)
        fresh = authority.make_intermediate(self._load(_ROOT), now, self.lives.intermediate)
        self._store(_INTERMEDIATE, fresh)
        self.signer = fresh
        return before

    def issue(
        self, request_pem: bytes, names: authority.LeafNames, now: float, not_before: float = 0.0
    ) -> x509.Certificate:
        """A leaf for the life of a leaf from `now` on; see :func:`sealane_auth.authority.issue_leaf`.

        It begins a little earlier, for clocks that are behind, but never before `not_before`.
        """
        life = self.lives.leaf.total_seconds()
        begin = max(now - min(authority.SKEW.total_seconds(), life / 10), not_before)
        begins, ends = (datetime.datetime.fromtimestamp(each, datetime.UTC) for each in (begin, now + life))
        return authority.issue_leaf(self.signer, request_pem, names, authority.Validity(begins, ends))

    def _store(self, name: str, signer: Signer) -> None:
        key = signer.key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # One file holds both for the load: a start between two writes would pair a key with another's certificate.
        sealed = self._keyfile.seal(name, len(key).to_bytes(4, "big") + key + signer.certificate_pem)
        write_secret(self._directory / f"{name}.key", sealed)
        write_secret(self._directory / f"{name}.pem", signer.certificate_pem)

    def _load(self, name: str) -> Signer:
        path = self._directory / f"{name}.key"
        content = path.read_bytes()
        if content.startswith(b"-----BEGIN"):  # of a version that kept keys in clear
            signer = authority.load_signer(content, (self._directory / f"{name}.pem").read_bytes())
            self._store(name, signer)
            return signer
        plain = self._keyfile.open(name, content)
        size = int.from_bytes(plain[:4], "big")
        return authority.load_signer(plain[4 : 4 + size], plain[4 + size :])
