"""A peer's certificate on disk, and what grpcio needs of it. Renewed files are used without a restart."""

from __future__ import annotations

import datetime
import json
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealane.errors import Unavailable

KEY, CHAIN, TRUST, ABOUT = "key.pem", "chain.pem", "trust.pem", "about.json"
_PAIR_TRIES, _PAIR_PAUSE_SECONDS = 50, 0.01


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Key, certificate chain and trust bundle of this process.

    Args:
        directory: where they lie; the key file is readable by its owner alone.
        spiffe_id: identity in the leaf.
        attributes: tier, zone, region, pool and clearance of a node; empty for services.
    """

    directory: Path
    spiffe_id: str
    attributes: dict[str, str]

    @property
    def private_key(self) -> bytes:
        """PEM."""
        return (self.directory / KEY).read_bytes()

    @property
    def certificate_chain(self) -> bytes:
        """PEM, leaf first."""
        return (self.directory / CHAIN).read_bytes()

    def pair(self) -> tuple[bytes, bytes]:
        """Private key and certificate chain that belong together, PEM.

        They lie in two files: while a renewal stands between the two this waits for it.

        Raises:
            Unavailable: they do not fit, whatever is waited for.
        """
        for _ in range(_PAIR_TRIES):
            chain, private = self.certificate_chain, self.private_key
            key = serialization.load_pem_private_key(private, None)
            if x509.load_pem_x509_certificates(chain)[0].public_key() == key.public_key():
                return private, chain
            time.sleep(_PAIR_PAUSE_SECONDS)
        raise Unavailable(f"the certificate in {self.directory} does not fit its key; enroll again")

    def fits(self) -> bool:
        """Whether key and certificate belong together: a kill in the middle of a renewal leaves two that do not."""
        try:
            self.pair()
        except Unavailable:
            return False
        return True

    @property
    def trust_bundle(self) -> bytes:
        """Roots, PEM."""
        return (self.directory / TRUST).read_bytes()

    @property
    def leaf(self) -> x509.Certificate:
        """The leaf certificate."""
        return x509.load_pem_x509_certificates(self.certificate_chain)[0]

    def renewal_due(self, now: datetime.datetime) -> bool:
        """Whether two thirds of the leaf's life are over."""
        leaf = self.leaf
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        return now >= leaf.not_valid_before_utc + life * 2 / 3

    def expired(self, now: datetime.datetime) -> bool:
        """Whether the leaf can no longer be used."""
        return now >= self.leaf.not_valid_after_utc


def load(directory: Path) -> PeerIdentity | None:
    """The identity stored in `directory`; None before enrollment."""
    about = directory / ABOUT
    if not about.exists():
        return None
    facts = json.loads(about.read_text())
    return PeerIdentity(directory, facts["spiffe_id"], facts["attributes"])


@dataclass(frozen=True, slots=True)
class Issued:
    """What an enrollment brings."""

    certificate_chain: bytes
    trust_bundle: bytes
    spiffe_id: str
    attributes: dict[str, str]


def store(directory: Path, private_key: bytes, issued: Issued) -> PeerIdentity:
    """Write an identity; `about.json` comes last, so that a torn write is no identity."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in ((KEY, private_key), (CHAIN, issued.certificate_chain), (TRUST, issued.trust_bundle)):
        _replace(directory / name, content)
    facts = {"spiffe_id": issued.spiffe_id, "attributes": issued.attributes}
    _replace(directory / ABOUT, json.dumps(facts).encode())
    return PeerIdentity(directory, issued.spiffe_id, issued.attributes)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(content)
    temporary.replace(path)


def new_request() -> tuple[bytes, bytes]:
    """A fresh ECDSA P-256 key and a certificate request for it, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, request.public_bytes(serialization.Encoding.PEM)


def server_credentials(identity: PeerIdentity, *, mesh: bool) -> grpc.ServerCredentials:
    """Credentials of a listener. `mesh` demands a certificate of the client.

    The files are looked at for every new connection, so a renewed certificate needs no restart.
    """

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([identity.pair()], identity.trust_bundle if mesh else None)

    seen = {"mtime": (identity.directory / CHAIN).stat().st_mtime_ns}

    def changed() -> grpc.ServerCertificateConfiguration | None:
        mtime = (identity.directory / CHAIN).stat().st_mtime_ns
        if mtime == seen["mtime"]:
            return None
        seen["mtime"] = mtime
        return configuration()

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        changed,  # type: ignore[arg-type]  # grpcio takes None for "unchanged", its stubs do not say so
        require_client_authentication=mesh,
    )
