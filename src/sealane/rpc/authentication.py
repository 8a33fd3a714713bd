"""Who is calling, before a byte of the body is looked at: a peer by its certificate, or a token's subject."""

from __future__ import annotations

from typing import Protocol

from sealane.errors import PermissionDenied, Unauthenticated
from sealane.rpc.call import Call, Identity, Peer
from sealane.rpc.middleware import Blocking, Inward
from sealane.security.proof import ProofVerifier
from sealane.security.revocations import Revocations
from sealane.security.tokens import TokenVerifier, UnknownKey

#: Thumbprint of the key or certificate that the gateway verified at the first hop; honoured on lanes alone.
FORWARDED_BINDING = "x-sealane-cnf"


def binding_of(identity: Identity) -> str:
    """The thumbprint that a token is bound to; empty for a bearer token."""
    return identity.key_thumbprint or identity.certificate_thumbprint


class CertificateTokens(Protocol):
    """Gets tokens for callers that have only a certificate."""

    def cached(self, peer: Peer) -> str:
        """A token for the account of this certificate.

        Raises:
            Blocking: none is at hand; the work gets one.
        """
        ...


class Authenticate(Inward):
    """Sets ``call.identity``, or refuses.

    Args:
        verifier: of tokens for this service.
        proofs: of possession of the keys that tokens are bound to.
        revocations: what is no longer good; None checks no certificate against them.
        certificates: gets tokens for certificate-only callers; None where those are not served.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        proofs: ProofVerifier,
        revocations: Revocations | None = None,
        certificates: CertificateTokens | None = None,
    ) -> None:
        self._verifier = verifier
        self._proofs = proofs
        self._revocations = revocations
        self._certificates = certificates

    def before(self, call: Call) -> None:
        """Set ``call.identity``; no byte of the body has been parsed."""
        if call.peer.tls_version not in ("TLSv1.3", ""):
            raise Unauthenticated("TLS 1.3 is required; update the client's TLS library", reason="TLS_VERSION")
        access = call.method.access
        if call.method.public:
            return
        if call.within is not None:
            # Its stream ends when its token does (LiveStreams); a proof is good for one call and was used for it.
            call.identity = call.within.identity
            return
        if self._revocations is not None and call.peer.spiffe_id:
            self._revocations.check_peer(call.peer)
        if call.peer.kind and call.peer.kind in access.callers and not call.peer.via_gateway:
            call.identity = Identity(subject=call.peer.spiffe_id)
            return
        if not access.permission:
            if call.peer.kind:
                raise PermissionDenied(f"{call.peer.kind} may not call {call.method.name}", reason="CALLER_NOT_ALLOWED")
            raise Unauthenticated("this method is for services; call it on the mesh port with a certificate")
        if self._certificates is not None and call.peer.account and "authorization" not in call.metadata:
            token = self._certificates.cached(call.peer)
            call.metadata = {**call.metadata, "authorization": f"Bearer {token}"}
        call.identity = self._by_token(call)

    def _by_token(self, call: Call) -> Identity:
        if "authorization" in call.duplicates or "authorization-bin" in call.metadata:
            raise Unauthenticated("send exactly one authorization entry", reason="TOKEN_AMBIGUOUS")
        scheme, _, token = call.metadata.get("authorization", "").partition(" ")
        if scheme.lower() not in ("bearer", "dpop") or not token:
            raise Unauthenticated(
                "no access token; get one from auth and send it as metadata 'authorization: Bearer ...'",
                reason="TOKEN_MISSING",
            )
        try:
            identity = self._verifier.verify(token)
        except UnknownKey as error:
            raise Blocking(self._verifier.keys.refresh) from error
        if identity.key_thumbprint or identity.certificate_thumbprint:
            self._check_binding(call, token, identity)
        return identity

    def _check_binding(self, call: Call, token: str, identity: Identity) -> None:
        proven_in_body = identity.key_thumbprint and call.method.access.proof_in_body
        if call.peer.via_gateway:
            if not proven_in_body and call.metadata.get(FORWARDED_BINDING) != binding_of(identity):
                raise Unauthenticated("the gateway did not vouch for the token's key", reason="PROOF_REFUSED")
            return
        # RFC 8705 section 3: the token is good over its own certificate alone.
        if identity.certificate_thumbprint and identity.certificate_thumbprint != call.peer.certificate.thumbprint:
            raise Unauthenticated(
                "the token is bound to a certificate; present that one on the mesh port", reason="CERTIFICATE_BINDING"
            )
        if identity.key_thumbprint and not proven_in_body:
            if "dpop" in call.duplicates:  # RFC 9449 section 4.3, check 1
                raise Unauthenticated("send exactly one proof in metadata 'dpop'", reason="PROOF_REFUSED")
            http_method, target = call.proves or ("POST", call.method.path)
            if not target:
                raise Unauthenticated(
                    "this server does not go by the host that was called; call it by one of its own names",
                    reason="PROOF_REFUSED",
                )
            self._proofs.verify(
                call.metadata.get("dpop", ""),
                http_method=http_method,
                method_path=target,
                token=token,
                thumbprint=identity.key_thumbprint,
            )
