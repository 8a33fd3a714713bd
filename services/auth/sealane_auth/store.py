"""What auth keeps, by noun. Constraints stand in the docstrings of each; every implementation obeys them."""

from __future__ import annotations

from typing import Protocol

from sealane.records.tables import Actor
from sealane_auth.account_store import AccountStore
from sealane_auth.issuer_store import IssuerStore
from sealane_auth.key_store import KeyStore
from sealane_auth.peer_store import PeerStore
from sealane_auth.revocation_store import RevocationStore
from sealane_auth.session_store import SessionStore


class Store(Protocol):
    """Records of auth, inside one transaction."""

    @property
    def accounts(self) -> AccountStore:
        """Projects, accounts, credentials, role bindings, quotas."""
        ...

    @property
    def sessions(self) -> SessionStore:
        """Refresh tokens, and ids that may be used once."""
        ...

    @property
    def issuers(self) -> IssuerStore:
        """Trusted external issuers."""
        ...

    @property
    def peers(self) -> PeerStore:
        """Join tokens, and who has joined."""
        ...

    @property
    def keys(self) -> KeyStore:
        """Signing keys."""
        ...

    @property
    def revocations(self) -> RevocationStore:
        """What is no longer good."""
        ...

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        ...
