"""What all parts of a client share: where the services are, channels to them, the project, tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import grpc

from sealane.auth.v1 import token_service_pb2, token_service_pb2_grpc
from sealane.client.credentials import AudienceCredentials, Credentials, TokenSource
from sealane.errors import FailedPrecondition
from sealane.rpc.channel import Target, connect, dial, retrying
from sealane.security.keys import CACHE_SECONDS, KeySet, Published
from sealane.telemetry import Telemetry, disabled

#: Audience of inference tokens; gateways and workers share it.
INFERENCE = "sealane-inference"
_TOKEN_SECONDS = 10.0
_KEYS_SECONDS = 5.0
#: A client asks for itself alone, and its calls wait for keys that have just changed.
_KEYS_LIMIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Site:
    """One installation.

    Args:
        endpoints: service -> client port ``host:port``; ``auth``, ``registry``, ``scheduler``, ``inference``, of which
            there may be several with commas between them.
        trust_bundle: root certificates, PEM.
        timeout: seconds for each control call.
        telemetry: records the client's own spans.
    """

    endpoints: Mapping[str, str]
    trust_bundle: bytes = field(repr=False)
    timeout: float = 30.0
    telemetry: Telemetry = field(default_factory=disabled)


class Session:
    """Channels and tokens of one client. Channels are made when first used and kept."""

    def __init__(self, site: Site, credentials: Credentials) -> None:
        self.site = site
        self._channels: dict[str, grpc.Channel] = {}
        self._bare: dict[tuple[str, str], grpc.Channel] = {}
        self._lock = threading.Lock()
        self.tokens = TokenSource(credentials, self.issue)
        self.keys = KeySet(self._fetch_keys, limit=_KEYS_LIMIT_SECONDS)
        self._project = ""
        self._credentials = credentials

    @property
    def timeout(self) -> float:
        """Seconds for a control call."""
        return self.site.timeout

    @property
    def telemetry(self) -> Telemetry:
        """Records the client's spans."""
        return self.site.telemetry

    @property
    def project(self) -> str:
        """Project that the client acts in."""
        if not self._project:
            self._project = self._credentials.project or self.tokens.get(INFERENCE).project
        return self._project

    @property
    def parent(self) -> str:
        """Resource name of the project."""
        return f"projects/{self.project}"

    def channel(self, service: str) -> grpc.Channel:
        """A channel to a service's client port, with credentials, for generated stubs."""
        with self._lock:
            if service not in self._channels:
                credentials = AudienceCredentials(self.tokens, f"sealane-{service}")
                # Of several addresses one leads. Those of gateways are called one by one: all of them serve.
                target = replace(self.target(service), address=",".join(item.address for item in self.targets(service)))
                self._channels[service] = connect(target, credentials)
            return self._channels[service]

    def bare(self, target: Target) -> grpc.Channel:
        """A channel to any address that the caller authenticates itself, for inference."""
        key = (target.address, target.tls_name)
        with self._lock:
            if key not in self._bare:
                self._bare[key] = dial(target)
            return self._bare[key]

    def target(self, service: str) -> Target:
        """Where a service is and whom to expect there.

        Raises:
            FailedPrecondition: its endpoint is not known.
        """
        return self.targets(service)[0]

    def targets(self, service: str) -> tuple[Target, ...]:
        """The same where a service has several addresses; at least one.

        Raises:
            FailedPrecondition: no endpoint is known.
        """
        named = (address.strip() for address in self.site.endpoints.get(service, "").split(","))
        addresses = [address for address in named if address]
        if not addresses:
            raise FailedPrecondition(
                f"the endpoint of {service} is not known; name it in the endpoints of the client", reason="NO_ENDPOINT"
            )
        bundle, name = self.site.trust_bundle, f"{service}.service.sealane"
        return tuple(Target(address, bundle, name) for address in addresses)

    def close(self) -> None:
        """Close all channels."""
        with self._lock:
            for channel in (*self._channels.values(), *self._bare.values()):
                channel.close()
            self._channels.clear()
            self._bare.clear()

    def _open(self) -> token_service_pb2_grpc.TokenServiceStub:
        with self._lock:
            if "public" not in self._channels:
                self._channels["public"] = connect(self.target("auth"))
            return token_service_pb2_grpc.TokenServiceStub(self._channels["public"])

    def issue(
        self, request: token_service_pb2.IssueTokenRequest | token_service_pb2.ExchangeTokenRequest
    ) -> token_service_pb2.IssueTokenResponse:
        """Ask auth for a token, by the proof in the request."""
        seconds = min(_TOKEN_SECONDS, self.timeout)
        deadline = time.monotonic() + seconds
        if isinstance(request, token_service_pb2.ExchangeTokenRequest):
            exchange = request
            return retrying(lambda: self._open().ExchangeToken(exchange, timeout=seconds), deadline=deadline, safe=True)
        asked = request
        # The contract cannot call it safe to repeat, since a refresh token is used up; with other proofs it is.
        return retrying(
            lambda: self._open().IssueToken(asked, timeout=seconds),
            deadline=deadline,
            safe=not asked.refresh_token and not asked.client_assertion,
        )

    def revoke(self, request: token_service_pb2.RevokeTokenRequest) -> None:
        """Take a token back, by the proof in the request."""
        self._open().RevokeToken(request, timeout=min(_TOKEN_SECONDS, self.timeout))

    def _fetch_keys(self) -> Published:
        request = token_service_pb2.GetJsonWebKeySetRequest()
        answer = self._open().GetJsonWebKeySet(request, timeout=_KEYS_SECONDS)
        return Published({key.kid: key.x for key in answer.keys}, answer.max_age_seconds or CACHE_SECONDS)
