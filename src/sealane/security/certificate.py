"""The facts of a peer's certificate that decide whether it is still good. TLS has verified the chain before."""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What is looked up of a certificate.

    Args:
        thumbprint: base64url of the SHA-256 of its DER form (``x5t#S256``, RFC 8705 section 3.1).
        issuer_key_id: authority key identifier in hex (RFC 5280 section 4.2.1.1); empty where it has none.
        not_before: seconds since 1970.
    """

    thumbprint: str = ""
    issuer_key_id: str = ""
    not_before: float = 0.0


@functools.lru_cache(maxsize=4096)
def facts_of(pem: bytes) -> CertificateFacts:
    """The facts of a PEM certificate; of none for empty bytes. A connection shows the same bytes with every call."""
    if not pem:
        return CertificateFacts()
    certificate = x509.load_pem_x509_certificate(pem)
    digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
    return CertificateFacts(
        base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        key_id_of_issuer(certificate),
        certificate.not_valid_before_utc.timestamp(),
    )


def key_id_of_issuer(certificate: x509.Certificate) -> str:
    """The authority key identifier in hex; empty where there is none."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return ""
    return (found or b"").hex()


def key_id_of(certificate: x509.Certificate) -> str:
    """The subject key identifier in hex, by which the certificates that it signed name it."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
