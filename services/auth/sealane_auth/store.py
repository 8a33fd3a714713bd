"""What auth keeps. Constraints stand in the methods' docstrings; every implementation obeys them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sealane.records.tables import Actor


@dataclass(frozen=True, slots=True)
class Account:
    """A service account. `secret_hash` is the SHA-256 of a 256-bit random secret, in hex."""

    project: str
    account_id: str
    client_id: str
    secret_hash: str
    scopes: tuple[str, ...]
    create_time: float
    etag: str


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A join token by the SHA-256 of its secret. `kind` is ``service`` or ``node``."""

    token_hash: str
    kind: str
    subject: str
    attributes: dict[str, str]
    hosts: tuple[str, ...]
    expires: float


@dataclass(frozen=True, slots=True)
class EnrolledPeer:
    """A service or node that has joined."""

    kind: str
    subject: str
    attributes: dict[str, str]
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs tokens and statements; PEM."""

    kid: str
    private_pem: bytes
    create_time: float


class Store(Protocol):
    """Records of auth, inside one transaction."""

    def add_account(self, account: Account) -> None:
        """Add; a taken (project, account_id) raises AlreadyExists."""
        ...

    def account_by_client(self, client_id: str) -> Account | None:
        """The account of a client id."""
        ...

    def accounts(self, project: str, after: str, limit: int) -> list[Account]:
        """Accounts of a project by id, strictly after the id `after`."""
        ...

    def add_join_token(self, token: JoinToken) -> None:
        """Add an unused token."""
        ...

    def take_join_token(self, token_hash: str) -> JoinToken | None:
        """Use a token up: returns it the first time, None ever after."""
        ...

    def put_peer(self, peer: EnrolledPeer) -> None:
        """Add or replace a peer."""
        ...

    def peer(self, kind: str, subject: str) -> EnrolledPeer | None:
        """A peer that has joined."""
        ...

    def add_signing_key(self, key: SigningKey) -> None:
        """Add a key."""
        ...

    def signing_keys(self) -> list[SigningKey]:
        """All keys, oldest first."""
        ...

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        ...
