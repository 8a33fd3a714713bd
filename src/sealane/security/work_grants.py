"""The scheduler's word that a node may read the files of its work, and store results: a node touches nothing else.

A compact JWS (RFC 7515) signed with the scheduler's leaf key (ES256); its certificate chain travels in ``x5c``, so that
the registry verifies it with the root alone and asks nobody.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509 import verification

from sealane.clock import Clock
from sealane.errors import PermissionDenied, Unauthenticated
from sealane.rpc.call import Peer
from sealane.security import jws
from sealane.security.revocations import Revocations
from sealane.security.tls import PeerIdentity

METADATA = "x-sealane-grant"
TYPE = "sealane-work-grant+jwt"
LIFETIME_SECONDS = 7 * 86_400
MAX_BYTES = 12_288
_HEADER = frozenset({"alg", "typ", "x5c"})
_SCHEDULER = "spiffe://sealane/service/scheduler"


@dataclass(frozen=True, slots=True)
class WorkGrant:
    """What a node may do in the registry.

    Args:
        node: id of the node.
        project: whose files.
        variant: resource name of a variant whose files it may read; empty for none.
        digests: SHA-256, hex, of more files that it may read.
        upload: whether it may store files.
    """

    node: str
    project: str
    variant: str = ""
    digests: tuple[str, ...] = ()
    upload: bool = False


def issue(grant: WorkGrant, identity: PeerIdentity, now: float) -> str:
    """A signed grant for a week; the scheduler renews it with every change of the work."""
    private, pem = identity.pair()
    key, chain = serialization.load_pem_private_key(private, None), x509.load_pem_x509_certificates(pem)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    header = {
        "alg": "ES256",
        "typ": TYPE,
        "x5c": [base64.b64encode(each.public_bytes(serialization.Encoding.DER)).decode() for each in chain],
    }
    claims = {
        "sub": grant.node,
        "project": grant.project,
        "variant": grant.variant,
        "digests": list(grant.digests),
        "upload": grant.upload,
        "iat": int(now),
        "exp": int(now) + LIFETIME_SECONDS,
    }
    signed = ".".join(jws.encode(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{jws.encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"  # RFC 7518 section 3.4


class WorkGrants:
    """Verifies grants.

    Args:
        trust_bundle: gives the root certificates, PEM.
        revocations: what is no longer good.
        clock: tells the time.
    """

    def __init__(self, trust_bundle: Callable[[], bytes], revocations: Revocations, clock: Clock) -> None:
        self._trust_bundle = trust_bundle
        self._revocations = revocations
        self._clock = clock

    def verify(self, grant: str, node: str) -> WorkGrant:
        """The grant that a node shows.

        Raises:
            PermissionDenied: none, not the scheduler's, over, or another node's.
        """
        if not grant:
            raise _refused("a node needs the scheduler's grant for the files of its work")
        try:
            parsed = jws.parse(grant, header_names=_HEADER, limit=MAX_BYTES)
            self._check_signature(parsed)
        except (Unauthenticated, InvalidSignature, ValueError, TypeError, verification.VerificationError) as error:
            raise _refused("the grant is not the scheduler's") from error
        claims, now = parsed.claims, self._clock.now()
        expires, issued = claims.get("exp"), claims.get("iat")
        # Both times are the signer's to choose: a leaf that has ended must not sign for ever.
        lives = type(expires) is int and type(issued) is int and 0 < expires - issued <= LIFETIME_SECONDS
        if not lives or type(expires) is not int or expires <= now:
            raise _refused("the grant is over; connect to the scheduler")
        if claims.get("sub") != node:
            raise _refused("the grant is another node's")
        digests = claims.get("digests")
        return WorkGrant(
            node=node,
            project=str(claims.get("project", "")),
            variant=str(claims.get("variant", "")),
            digests=tuple(digests) if isinstance(digests, list) else (),
            upload=claims.get("upload") is True,
        )

    def _check_signature(self, parsed: jws.Parsed) -> None:
        if parsed.header["alg"] != "ES256" or parsed.header["typ"] != TYPE:
            raise ValueError("another type")
        leaf, *between = _certificates(parsed.header.get("x5c"))
        now = datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC)
        roots = verification.Store(x509.load_pem_x509_certificates(self._trust_bundle()))
        # The scheduler's leaf lives a day and its grants longer: what counts is that it was good when it signed.
        issued = parsed.claims.get("iat")
        if type(issued) is not int or issued > now.timestamp() + 60:
            raise ValueError("not issued yet")
        signed = datetime.datetime.fromtimestamp(issued, datetime.UTC)
        verifier = verification.PolicyBuilder().store(roots).time(signed).build_client_verifier()
        subjects = verifier.verify(leaf, between).subjects or ()
        names = [each.value for each in subjects if isinstance(each, x509.UniformResourceIdentifier)]
        pem = leaf.public_bytes(serialization.Encoding.PEM)
        self._revocations.check_peer(Peer(spiffe_id=_SCHEDULER, certificate_pem=pem))
        key = leaf.public_key()
        if names != [_SCHEDULER] or not isinstance(key, ec.EllipticCurvePublicKey) or len(parsed.signature) != 64:
            raise ValueError("another signer")
        r, s = (int.from_bytes(half, "big") for half in (parsed.signature[:32], parsed.signature[32:]))
        key.verify(encode_dss_signature(r, s), parsed.signing_input, ec.ECDSA(hashes.SHA256()))


def _certificates(x5c: object) -> Iterable[x509.Certificate]:
    if not isinstance(x5c, list) or not 1 <= len(x5c) <= 3:
        raise ValueError("no chain")
    return [x509.load_der_x509_certificate(base64.b64decode(each, validate=True)) for each in x5c]


def _refused(message: str) -> PermissionDenied:
    return PermissionDenied(message, reason="WORK_GRANT_REFUSED")
