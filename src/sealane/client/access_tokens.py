"""Access tokens as things of their own: narrowed for somebody else, looked at, taken back."""

from __future__ import annotations

from collections.abc import Sequence

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.auth.v1 import token_service_pb2_grpc
from sealane.client.accounts import name_of
from sealane.client.session import Session

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  # the name of a type


class AccessTokens:
    """What the client can do with tokens."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def narrow(
        self,
        audience: str,
        *,
        scope: str = "",
        model_prefixes: Sequence[str] = (),
        lifetime_seconds: int = 0,
        token: str = "",
    ) -> pb.IssueTokenResponse:
        """A token that may do less, to hand to somebody (RFC 8693).

        Args:
            audience: service that it is for, such as ``sealane-inference``.
            scope: scopes, separated by spaces; empty keeps all.
            model_prefixes: only for models whose ids begin with one of them.
            lifetime_seconds: longest life; 0 for as long as the token that it is made of.
            token: the token to narrow; empty takes the client's own.

        Raises:
            PermissionDenied: it would do more than that.
        """
        return self._session.issue(
            pb.ExchangeTokenRequest(
                grant_type=EXCHANGE,
                subject_token=token or self._session.tokens.get(audience).text,
                subject_token_type=ACCESS_TOKEN,
                audience=audience,
                scope=scope,
                model_prefixes=model_prefixes,
                lifetime_seconds=lifetime_seconds,
            )
        )

    def introspect(self, token: str) -> pb.IntrospectTokenResponse:
        """Whether a token of the project is good now, and what it says."""
        return self._stub().IntrospectToken(pb.IntrospectTokenRequest(token=token), timeout=self._session.timeout)

    def revoke_id(self, token_id: str) -> None:
        """Take back one token by its id (``jti``), as it stands in logs."""
        request = pb.RevokeTokenIdRequest(parent=self._session.parent, token_id=token_id)
        self._stub().RevokeTokenId(request, timeout=self._session.timeout)

    def revoke_subject(self, subject: str) -> int:
        """Take back every token of an account (by id or name) or of a federated identity; the epoch that is good."""
        request = pb.RevokeSubjectRequest(subject=name_of(self._session, subject))
        return self._stub().RevokeSubject(request, timeout=self._session.timeout).epoch

    def _stub(self) -> token_service_pb2_grpc.TokenServiceStub:
        return token_service_pb2_grpc.TokenServiceStub(self._session.channel("auth"))
