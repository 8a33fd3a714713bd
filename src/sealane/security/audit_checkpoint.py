"""Signed checkpoints of an audit log: a service's word on where its chain stood.

The signature is ECDSA P-256 with SHA-256 over these parts, each after its length as four bytes, big-endian::

    "sealane/audit-checkpoint/v1", service, sequence, hash of that row, microseconds since 1970

with numbers in decimal. It is made with the key of the service's certificate, and the certificates travel with it, so
that it can be verified for as long as the root is known, whatever has been renewed since.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from sealane.errors import Unavailable
from sealane.security.length_prefixed import lp
from sealane.security.tls import PeerIdentity

_DOMAIN = "sealane/audit-checkpoint/v1"
_ALGORITHM = ec.ECDSA(hashes.SHA256())
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a chain stood.

    Args:
        service: whose chain.
        sequence: last row it covers.
        hash: of that row.
        time_us: microseconds since 1970.
        signature: DER.
        chain: certificates, PEM, leaf first.
    """

    service: str
    sequence: int
    hash: bytes
    time_us: int
    signature: bytes = b""
    chain: bytes = b""

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return lp(_DOMAIN, self.service, str(self.sequence), self.hash, str(self.time_us))


class CheckpointRefused(Exception):
    """A checkpoint that is not the service's; the text says why."""


def sign(checkpoint: Checkpoint, identity: PeerIdentity) -> Checkpoint:
    """The checkpoint with signature and certificates.

    Raises:
        Unavailable: the certificate is being renewed at this moment, or its key is of another kind.
    """
    chain = identity.certificate_chain
    key = serialization.load_pem_private_key(identity.private_key, None)
    leaf = x509.load_pem_x509_certificates(chain)[0]
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != leaf.public_key():
        raise Unavailable("the certificate does not fit its key; try again when it is renewed")
    signature = key.sign(checkpoint.signed_bytes(), _ALGORITHM)
    return Checkpoint(checkpoint.service, checkpoint.sequence, checkpoint.hash, checkpoint.time_us, signature, chain)


class Notary:
    """Says whether checkpoints are those of one service.

    Args:
        service: ``auth``, ``registry`` or ``scheduler``.
        trust_bundle: root certificates, PEM.
    """

    def __init__(self, service: str, trust_bundle: bytes) -> None:
        self.service = service
        self._store = Store(x509.load_pem_x509_certificates(trust_bundle))
        self._seen: dict[bytes, _Signer] = {}

    def check(self, checkpoint: Checkpoint) -> None:
        """Verify name, certificates as of the checkpoint's own time, and signature.

        Raises:
            CheckpointRefused: it is not this service's word.
        """
        if checkpoint.service != self.service:
            raise CheckpointRefused(f"the checkpoint is of {checkpoint.service!r}, not of {self.service}")
        signer = self._seen.get(checkpoint.chain)
        if signer is None:
            signer = self._seen[checkpoint.chain] = self._signer(checkpoint)
        if not signer.first_us <= checkpoint.time_us <= signer.last_us:
            raise CheckpointRefused("the checkpoint's certificate was not valid at its time")
        try:
            signer.key.verify(checkpoint.signature, checkpoint.signed_bytes(), _ALGORITHM)
        except InvalidSignature as error:
            raise CheckpointRefused("the checkpoint's signature does not verify") from error

    def _signer(self, checkpoint: Checkpoint) -> _Signer:
        """Verify the certificates once; a service signs hundreds of checkpoints with the same."""
        try:
            leaf, *others = x509.load_pem_x509_certificates(checkpoint.chain)
            time = _EPOCH + datetime.timedelta(microseconds=checkpoint.time_us)
            verifier = PolicyBuilder().store(self._store).time(time).build_client_verifier()
            chain = verifier.verify(leaf, others).chain
        except (ValueError, OverflowError, VerificationError) as error:
            raise CheckpointRefused("the checkpoint's certificates do not lead to the root") from error
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        key = leaf.public_key()
        if uris != [f"spiffe://sealane/service/{self.service}"] or not isinstance(key, ec.EllipticCurvePublicKey):
            raise CheckpointRefused(f"the checkpoint's certificate is not that of {self.service}")
        return _Signer(
            key,
            max(_microseconds(item.not_valid_before_utc) for item in chain),
            min(_microseconds(item.not_valid_after_utc) for item in chain),
        )


@dataclass(frozen=True, slots=True)
class _Signer:
    key: ec.EllipticCurvePublicKey
    first_us: int
    last_us: int


def _microseconds(time: datetime.datetime) -> int:
    return (time - _EPOCH) // datetime.timedelta(microseconds=1)
