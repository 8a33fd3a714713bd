"""The rules that turn a client that proved itself, or a refresh token, into an access token; and take tokens back."""

from __future__ import annotations

from collections.abc import Mapping

from sealane.clock import Clock
from sealane.errors import InvalidArgument, NotFound, ResourceExhausted, SealaneError, Unauthenticated
from sealane.names import parse
from sealane.records.tables import Actor
from sealane.rpc.call import Peer
from sealane.security import permissions, tokens
from sealane.security.permissions import Grants
from sealane.security.tokens import TokenVerifier, UnknownKey
from sealane_auth.account_store import Account
from sealane_auth.clients import CERTIFICATE, PASSPHRASE, ClientChecks, Proven, refused, still_good, use_up
from sealane_auth.exchange import Certificates, ExchangeRules
from sealane_auth.federation import FederationRules
from sealane_auth.issuer_keys import IssuerKeys
from sealane_auth.minting import OFFLINE, Issued, Mint, Settings, Wanted
from sealane_auth.rights import account_of, demand_over, grants_of, quota_claim
from sealane_auth.session_store import Session
from sealane_auth.sessions import SessionRules, is_refresh_token
from sealane_auth.signing import Keyring
from sealane_auth.store import Store

__all__ = ["Settings", "TokenRules"]

#: Every service keeps all revocations in memory, so one project must not fill it.
MAX_REVOKED_TOKENS = 1000


class TokenRules:
    """Everything about tokens. Knows no transport and no database.

    Args:
        clock: the time.
        keyring: keys that sign.
        verifier: verifies what was issued here, for any audience.
        certificates: whose a certificate is.
        settings: how tokens are issued.
    """

    def __init__(
        self,
        clock: Clock,
        keyring: Keyring,
        verifier: TokenVerifier,
        certificates: Certificates,
        settings: Settings,
    ) -> None:
        mint = Mint(clock, keyring)
        self._clock = clock
        self._verifier = verifier
        self._mint = mint
        self._sessions = SessionRules(clock)
        self.settings = settings
        self.keyring = keyring
        self.clients = ClientChecks(clock)
        self.federation = FederationRules(clock)
        self.issuer_keys = IssuerKeys(clock, ca_file=settings.federation_ca, private=settings.federation_private)
        self.exchange = ExchangeRules(clock, mint, certificates, settings)

    def issue(self, store: Store, proven: Proven, wanted: Wanted) -> Issued:
        """A token for client credentials (RFC 6749 section 4.4), with a refresh token where one is asked for.

        Raises:
            PermissionDenied: a scope that the account does not hold.
        """
        wanted.check()
        account = still_good(store, proven, self._clock.now())
        grants = grants_of(store, account)
        scopes = wanted.scopes_of(grants)
        issued = self._for_account(store, account, wanted, permissions.narrowed(grants, scopes))
        if OFFLINE not in wanted.scope.split():
            return issued
        session = Session(
            session_id="",
            token_hash="",
            subject=account.name,
            client_id=account.client_id,
            project=account.project,
            scopes=tuple(sorted(scopes)),
            key_thumbprint=wanted.key_thumbprint,
            certificate_thumbprint=wanted.certificate_thumbprint,
            # A person's client must not keep the passphrase, so it has nothing to authenticate a refresh with.
            public=proven.kind == PASSPHRASE,
            epoch=store.revocations.epoch_of(account.name),
            create_time=0.0,
            expire_time=0.0,
        )
        return self._sessions.begin(store, session, issued)

    def use_up(self, store: Store, proven: Proven) -> None:
        """Let a client's proof be good no more, where it is good once."""
        use_up(store, proven, self._clock.now())

    def refresh(self, store: Store, client: Proven | str, refresh_token: str, wanted: Wanted) -> Issued | SealaneError:
        """A token for a refresh token, which is used up. A refusal that must be kept is returned, not raised.

        Args:
            store: the records.
            client: who proved itself; else who it says it is, which may be empty.
            refresh_token: the token.
            wanted: the access token that is asked for.

        Raises:
            Unauthenticated: the token is not good, or the client did not prove itself.
            PermissionDenied: a scope that the session or the account does not hold.
        """
        wanted.check()
        session = self._sessions.find(store, refresh_token)
        proven = client if isinstance(client, Proven) else None
        if proven is None and not session.public:
            raise refused()  # RFC 6749 section 6: a client that has credentials shows them
        named = client if isinstance(client, str) else still_good(store, client, self._clock.now()).client_id
        if named not in ("", session.client_id):
            raise _wrong_grant("the refresh token is another client's")
        if not self._sessions.is_current(session, refresh_token):
            self._sessions.end(
                store, session, Actor(session.subject, session.project), "a used refresh token came again"
            )
            return _wrong_grant("the refresh token was used before, so its session has ended; log in again")
        if session.key_thumbprint and wanted.key_thumbprint != session.key_thumbprint:
            raise _wrong_grant("the session is bound to a key; ask with the thumbprint of that key")
        if session.certificate_thumbprint and not _same_certificate(session, proven, wanted):
            raise _wrong_grant("the session is bound to a certificate; ask with that certificate")
        account = account_of(store, session.subject)
        present = grants_of(store, account)
        held = permissions.narrowed(present, present.scopes & set(session.scopes))
        issued = self._for_account(store, account, wanted, permissions.narrowed(held, wanted.scopes_of(held)))
        return self._sessions.go_on(store, session, issued)

    def claims(self, token: str) -> dict[str, object]:
        """What a token of ours says, fully verified. May block for the key set: not on the event loop.

        Raises:
            Unauthenticated: it does not verify, or was revoked.
        """
        try:
            return self._verifier.claims(token)
        except UnknownKey:
            self._verifier.keys.refresh()
        try:
            return self._verifier.claims(token)
        except UnknownKey as error:
            raise Unauthenticated("the token's key is not known; get a new token", reason="TOKEN_KEY") from error

    def check_peer(self, peer: Peer) -> None:
        """Refuse a certificate whose holder was evicted or whose issuer is no longer trusted.

        Raises:
            Unauthenticated: so it is.
        """
        if self._verifier.revocations is not None:
            self._verifier.revocations.check_peer(peer)

    def revoke(self, store: Store, proven: Proven | None, token: str, claims: Mapping[str, object] | None) -> None:
        """Take back a token of the client that asks (RFC 7009); a foreign or unknown one changes nothing.

        Args:
            store: the records.
            proven: the client; None where it did not prove itself, which ends sessions of people's clients alone.
            token: access or refresh token.
            claims: of the access token, where it is a good one.

        Raises:
            Unauthenticated: an access token, and the client did not prove itself.
        """
        client_id = proven.account.client_id if proven is not None else ""
        if is_refresh_token(token):
            try:
                session = self._sessions.find(store, token)
            except Unauthenticated:
                return
            if session.client_id == client_id or (session.public and not client_id):
                self._sessions.end(store, session, Actor(session.subject, session.project), "revoked by its client")
            return
        if proven is None:
            raise refused()
        if claims is None or claims["client_id"] != client_id:
            return
        now, project, token_id = self._clock.now(), str(claims["project"]), str(claims["jti"])
        _demand_room(store, project, now)
        store.revocations.revoke_token(project, token_id, float(str(claims["exp"])), now)
        actor = Actor(proven.account.name, project)
        store.record(actor, "RevokeToken", f"projects/{project}/tokens/{token_id}", now)

    def revoke_id(self, store: Store, actor: Actor, project: str, token_id: str) -> None:
        """Take back an access token by its id.

        Raises:
            ResourceExhausted: too many of the project's are revoked one by one already.
        """
        if not 0 < len(token_id) <= 64 or not token_id.isprintable():
            raise InvalidArgument("token_id is no id of a token; look for jti", field="token_id")
        now = self._clock.now()
        _demand_room(store, project, now)
        store.revocations.revoke_token(project, token_id, now + tokens.MAX_LIFETIME_SECONDS, now)
        store.record(actor, "RevokeTokenId", f"projects/{project}/tokens/{token_id}", now)

    def revoke_subject(self, store: Store, actor: Actor, subject: str) -> int:
        """Take back every token of a subject; the epoch from which tokens are good again.

        Raises:
            NotFound: no such account.
            PermissionDenied: the account may do more than the actor.
        """
        if "/federated/" in subject:
            parse(subject, "projects/*/federated/*/*", "subject")
        else:
            project, account_id = parse(subject, "projects/*/serviceAccounts/*", "subject")
            account = store.accounts.account(project, account_id)
            if account is None:
                raise NotFound(f"{subject} does not exist, or is not yours to see; check the name")
            demand_over(store, actor, account)
        now = self._clock.now()
        epoch = store.revocations.revoke_subject(subject, now)
        store.sessions.delete_sessions(subject)
        store.record(actor, "RevokeSubject", subject, now, epoch=str(epoch))
        return epoch

    def _for_account(self, store: Store, account: Account, wanted: Wanted, grants: Grants) -> Issued:
        longest = self.settings.token_seconds
        return self._mint.sign(
            store,
            tokens.Grant(
                subject=account.name,
                client_id=account.client_id,
                project=account.project,
                audience=wanted.audience,
                scopes=grants.scopes,
                key_thumbprint=wanted.key_thumbprint,
                certificate_thumbprint=wanted.certificate_thumbprint,
                models=grants.models,
                epoch=store.revocations.epoch_of(account.name),
                quota=quota_claim(store, account),
                lifetime=min(wanted.lifetime or longest, longest),
            ),
        )


def _demand_room(store: Store, project: str, now: float) -> None:
    if store.revocations.count_tokens(project, now) >= MAX_REVOKED_TOKENS:
        raise ResourceExhausted(
            f"{MAX_REVOKED_TOKENS} tokens of the project are revoked one by one; revoke the subject instead",
            reason="TOO_MANY_REVOKED",
        )


def _same_certificate(session: Session, proven: Proven | None, wanted: Wanted) -> bool:
    """Certificates are renewed every day: a newer one of the client itself will do (RFC 8705 section 6.2)."""
    renewed = proven is not None and proven.kind == CERTIFICATE and bool(wanted.certificate_thumbprint)
    return renewed or wanted.certificate_thumbprint == session.certificate_thumbprint


def _wrong_grant(message: str) -> Unauthenticated:
    return Unauthenticated(message, reason="INVALID_GRANT")
