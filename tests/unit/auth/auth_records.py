"""Auth's records in memory and its rules around them, for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.clock import ManualClock
from sealane.errors import Unauthenticated
from sealane.records import tables
from sealane.records.database import Database
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane.rpc.call import Identity
from sealane.security import jws
from sealane.security.keys import KeySet, Published
from sealane.security.revocations import Revocations
from sealane.security.tokens import ISSUER, TokenVerifier, identity_of
from sealane_auth import account_sql, issuer_sql, key_sql, peer_sql, revocation_sql, session_sql
from sealane_auth.account_store import Account
from sealane_auth.accounts import AccountRules, NewAccount, NewCredential
from sealane_auth.clients import Proof, Proven
from sealane_auth.federation import FederationRules
from sealane_auth.grants import Settings, TokenRules
from sealane_auth.minting import Wanted
from sealane_auth.peer_store import Peer
from sealane_auth.revocations import Hub
from sealane_auth.store import Store
from sealane_auth.store_sql import SqlStore
from sealane_auth.token_servicer import TokenServicer

AUDIENCE = "sealane-inference"


class OneKey:
    """A keyring with one key."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()

    def signing(self, store: object) -> Ed25519PrivateKey:
        return self.key

    def public_keys(self, store: object) -> dict[str, bytes]:
        raw = self.key.public_key().public_bytes_raw()
        return {jws.thumbprint(raw): raw}


class JoinedCertificates:
    """Reads whose a certificate says it is, without looking at its chain."""

    def account_of_certificate(self, store: Store, chain_pem: bytes) -> str:
        leaf = x509.load_pem_x509_certificate(chain_pem)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        peer = store.peers.peer("account", str(uri).removeprefix("spiffe://sealane/"))
        if peer is None or peer.evict_time:
            raise Unauthenticated("the certificate is no service account's", reason="CERTIFICATE_REFUSED")
        return peer.subject


def prepare(connection: sa.Connection) -> None:
    """All tables of auth."""
    for module in (account_sql, session_sql, issuer_sql, peer_sql, key_sql, revocation_sql):
        module.metadata.create_all(connection)
    tables.metadata.create_all(connection)


@dataclass(slots=True)
class Auth:
    """Auth without a wire.

    Args:
        connection: where the records are.
        clock: the time.
    """

    connection: sa.Connection
    clock: ManualClock
    settings: Settings = dataclasses.field(default_factory=Settings)
    store: SqlStore = dataclasses.field(init=False)
    accounts: AccountRules = dataclasses.field(init=False)
    tokens: TokenRules = dataclasses.field(init=False)
    federation: FederationRules = dataclasses.field(init=False)
    revocations: Revocations = dataclasses.field(init=False)
    admin: Actor = dataclasses.field(init=False)
    admin_secret: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.store = SqlStore(self.connection)
        self.accounts = AccountRules(self.clock)
        self.federation = FederationRules(self.clock)
        self.revocations = Revocations(self.clock)
        self.tokens = token_rules(self.clock, self.revocations, self.settings)
        account, self.admin_secret = self.accounts.create_first_admin(self.store, "p")
        self.admin = Actor(account.name, "p")

    def account(
        self, account_id: str, *roles: str, scopes: tuple[str, ...] = (), project: str = "p"
    ) -> tuple[Account, str]:
        """A new account and its secret."""
        wanted = NewAccount(project, account_id, scopes, roles)
        actor = Actor(self.admin.subject, project)
        return self.accounts.create_account(self.store, actor, wanted)

    def add(self, account: Account, kind: str, value: str) -> None:
        """A further credential, a second later."""
        self.clock.advance(1)
        self.accounts.create_credential(self.store, self.admin, account.name, NewCredential(kind, value))

    def prove(self, proof: Proof) -> Proven:
        """The client that a proof proves."""
        proven = self.tokens.clients.prove(self.tokens.clients.look_up(self.store, proof), proof)
        self.tokens.use_up(self.store, proven)
        return proven

    def claims(self, token: str) -> dict[str, object]:
        """What a token says, after all that was revoked has been heard of."""
        now = self.clock.now()
        self.revocations.take(self.store.revocations.last(), [r for _, r in self.store.revocations.after(0, now)])
        return self.tokens.claims(token)

    def identity(self, token: str) -> Identity:
        """The identity that a token proves."""
        return identity_of(self.claims(token))

    def token(self, account: Account, secret: str, scope: str = "", **wanted: str) -> str:
        """An access token by secret."""
        proven = self.prove(Proof(account.client_id, secret))
        return self.tokens.issue(self.store, proven, Wanted(AUDIENCE, scope, **wanted)).token  # type: ignore[arg-type]

    def join(self, account: Account) -> None:
        """Let an account have a certificate."""
        self.store.peers.put_peer(Peer("account", account.name, {}, (), join_time=self.clock.now()))

    def audit(self) -> str:
        """All that was recorded, as text."""
        return "\n".join(str(row) for row in self.connection.execute(sa.select(tables.audit)))


def token_rules(clock: ManualClock, revocations: Revocations, settings: Settings) -> TokenRules:
    """Token rules with a key of their own."""
    keyring = OneKey()
    published = Published({kid: jws.encode(raw) for kid, raw in keyring.public_keys(None).items()})
    verifier = TokenVerifier(
        KeySet(lambda: published), issuer=ISSUER, audience="sealane-auth", clock=clock, revocations=revocations
    )
    return TokenRules(clock, keyring, verifier, JoinedCertificates(), settings)  # type: ignore[arg-type]


@contextmanager
def in_memory() -> Iterator[Auth]:
    """Auth on a database in memory."""
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        prepare(connection)
        yield Auth(connection, ManualClock())
    engine.dispose()


@contextmanager
def serving(
    clock: ManualClock, settings: Settings | None = None
) -> Iterator[tuple[Transactions[Store], TokenServicer]]:
    """The token servicer on its database thread, without a wire; the admin of ``p`` has the secret that comes first."""
    database = Database("sqlite://")
    database.start(prepare)
    records: Transactions[Store] = Transactions(database, SqlStore, clock)
    revocations = Revocations(clock)
    rules = token_rules(clock, revocations, settings or Settings())
    try:
        yield records, TokenServicer(records, rules, Hub(records, revocations, clock))
    finally:
        database.close()
