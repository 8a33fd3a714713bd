"""Tokens for callers that have only a certificate: the gateway exchanges it, as the actor (RFC 8693), and keeps it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import grpc

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.auth.v1 import token_service_pb2_grpc
from sealane.clock import Clock
from sealane.rpc.call import Peer
from sealane.rpc.middleware import Blocking
from sealane.security.revocations import Revocations

AUDIENCE = "sealane-inference"
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
CERTIFICATE_TYPE = "urn:sealane:params:oauth:token-type:x509"
_EXCHANGE_SECONDS = 5.0
_CAPACITY = 1024


class CertificateTokens:
    """Gets and keeps them.

    Args:
        channel: to auth's mesh port.
        clock: tells when a token is to be replaced.
        revocations: whatever is revoked, tokens are got anew: it may have been one of these.
    """

    def __init__(self, channel: Callable[[], grpc.Channel], clock: Clock, revocations: Revocations) -> None:
        self._channel = channel
        self._clock = clock
        self._revocations = revocations
        self._lock = threading.Lock()
        self._tokens: OrderedDict[str, tuple[str, float, int]] = OrderedDict()

    def cached(self, peer: Peer) -> str:
        """A token for the account of this certificate.

        Raises:
            Blocking: none is at hand; the work gets one, or raises what auth answers.
        """
        found = self._tokens.get(peer.certificate.thumbprint)
        if found is not None and self._clock.now() < found[1] and found[2] == self._revocations.version:
            return found[0]
        raise Blocking(lambda: self._exchange(peer))

    def _exchange(self, peer: Peer) -> None:
        stub = token_service_pb2_grpc.TokenServiceStub(self._channel())
        request = pb.ExchangeTokenRequest(
            grant_type=GRANT_TYPE,
            subject_token=peer.certificate_pem.decode(),
            subject_token_type=CERTIFICATE_TYPE,
            audience=AUDIENCE,
        )
        begun, version = self._clock.now(), self._revocations.version
        answer = stub.ExchangeToken(request, timeout=_EXCHANGE_SECONDS)
        with self._lock:
            # Replaced at two thirds of its life, so that the worker never sees one about to end.
            self._tokens[peer.certificate.thumbprint] = (
                answer.access_token,
                begun + answer.expires_in * 2 / 3,
                version,
            )
            if len(self._tokens) > _CAPACITY:
                self._tokens.popitem(last=False)
