"""The certificate authority: root, intermediate, and leaves with SPIFFE and DNS names.

Pure: keys and certificates in, certificates out; files are the caller's business.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sealane.errors import InvalidArgument, Unauthenticated
from sealane.security.certificate import key_id_of_issuer

ROOT_LIFE = datetime.timedelta(days=3650)
INTERMEDIATE_LIFE = datetime.timedelta(days=90)
LEAF_LIFE = datetime.timedelta(hours=24)
#: Clocks may differ by so much.
SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Signer:
    """A key and the certificate that lets it sign."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def certificate_pem(self) -> bytes:
        """The certificate, PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def load_signer(key_bytes: bytes, certificate_pem: bytes) -> Signer:
    """A signer from its key (PEM or DER) and its certificate (PEM)."""
    load = serialization.load_pem_private_key if key_bytes.startswith(b"-----") else serialization.load_der_private_key
    key = load(key_bytes, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidArgument("the authority's key is not an elliptic curve key")
    return Signer(key, x509.load_pem_x509_certificate(certificate_pem))


def make_root(now: datetime.datetime) -> Signer:
    """A self-signed root for ten years. Its key is to be kept offline."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Sealane root")
    builder = _authority(name, name, key.public_key(), now, ROOT_LIFE, path_length=1)
    return Signer(key, builder.add_extension(_issued_by(key.public_key()), critical=False).sign(key, hashes.SHA256()))


def make_intermediate(root: Signer, now: datetime.datetime, life: datetime.timedelta = INTERMEDIATE_LIFE) -> Signer:
    """An intermediate, for 90 days unless said; it signs leaves."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _authority(
        _name("Sealane intermediate"),
        root.certificate.subject,
        key.public_key(),
        now,
        life,
        path_length=0,
    )
    builder = builder.add_extension(_issued_by(root.key.public_key()), critical=False)
    return Signer(key, builder.sign(root.key, hashes.SHA256()))


@dataclass(frozen=True, slots=True)
class LeafNames:
    """What a leaf certificate says; never taken from a certificate request."""

    spiffe_id: str
    dns: str
    hosts: Sequence[str] = ()


def service_names(service: str, hosts: Sequence[str] = ()) -> LeafNames:
    """Names of a service's leaf."""
    return LeafNames(f"spiffe://sealane/service/{service}", f"{service}.service.sealane", hosts)


def node_names(node: str, hosts: Sequence[str] = ()) -> LeafNames:
    """Names of a node's leaf."""
    return LeafNames(f"spiffe://sealane/node/{node}", f"{node}.node.sealane", hosts)


def relay_names(relay: str, hosts: Sequence[str] = ()) -> LeafNames:
    """Names of a relay's leaf."""
    return LeafNames(f"spiffe://sealane/relay/{relay}", f"{relay}.relay.sealane", hosts)


def account_names(account: str) -> LeafNames:
    """Names of a service account's leaf; `account` is its resource name."""
    _, project, _, name = account.split("/")
    return LeafNames(f"spiffe://sealane/{account}", f"{name}.{project}.account.sealane")


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when a certificate is good."""

    begin: datetime.datetime
    end: datetime.datetime


def issue_leaf(signer: Signer, request_pem: bytes, names: LeafNames, validity: Validity) -> x509.Certificate:
    """A leaf for the public key of a PKCS #10 request, whose signature proves possession.

    Raises:
        InvalidArgument: the request is malformed, its signature wrong, or its key no P-256 key.
    """
    try:
        request = x509.load_pem_x509_csr(request_pem)
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, InvalidSignature) as error:
        raise InvalidArgument("the certificate request is malformed; send PKCS #10 in PEM") from error
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgument("the certificate request must be signed with its own P-256 key")
    # RFC 5280 section 4.2.1.6: names live in the subject alternative name.
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(names.spiffe_id), x509.DNSName(names.dns)]
    alternatives.extend(_host(host) for host in names.hosts)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _builder(_name(names.dns[:64]), signer.certificate.subject, key, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_issued_by(signer.key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(signer.key, hashes.SHA256())
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    validity: Validity,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.begin)
        .not_valid_after(validity.end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _issued_by(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    # RFC 5280 section 4.2.1.1; strict verifiers refuse a certificate without it.
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    life: datetime.timedelta,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(subject, issuer, key, Validity(now - SKEW, now + life))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
    )


def verified_name(
    trust_bundle: bytes, intermediates: Sequence[x509.Certificate], chain_pem: bytes, now: datetime.datetime
) -> str:
    """The SPIFFE id of a leaf, after its chain was verified up to the root (RFC 5280 section 6).

    Raises:
        Unauthenticated: malformed, not issued by this authority, or not good at `now`.
    """
    try:
        leaf, *between = x509.load_pem_x509_certificates(chain_pem)
        roots = x509.load_pem_x509_certificates(trust_bundle)
        policy = verification.PolicyBuilder().store(verification.Store(roots)).time(now)
        verified = policy.build_client_verifier().verify(leaf, [*between, *intermediates])
        if not key_id_of_issuer(leaf):
            raise ValueError("it does not name its issuer's key")
    except (ValueError, verification.VerificationError) as error:
        raise Unauthenticated("the certificate does not verify", reason="CERTIFICATE_REFUSED") from error
    names = [name.value for name in verified.subjects or () if isinstance(name, x509.UniformResourceIdentifier)]
    if len(names) != 1:
        raise Unauthenticated("the certificate names no peer", reason="CERTIFICATE_REFUSED")
    return names[0]
