"""Join tokens and who has joined with them: what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Offline:
    """What a node may do while auth is out of reach.

    Args:
        ttl: seconds for which it may; 0 for not at all.
        accounts: service accounts that may call it then.
    """

    ttl: float = 0.0
    accounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A join token by the SHA-256 of its secret. `kind` is ``service``, ``node``, ``relay`` or ``account``."""

    token_hash: str
    kind: str
    subject: str
    attributes: dict[str, str]
    hosts: tuple[str, ...]
    expires: float
    offline: Offline = Offline()


@dataclass(frozen=True, slots=True)
class Peer:
    """A service, node, relay or account that has joined.

    Args:
        kind: ``service``, ``node``, ``relay`` or ``account``.
        subject: name of the service, id of the node or relay, or resource name of the account.
        attributes: of a node.
        hosts: names and addresses in its certificate, beside those of the mesh.
        device_key: raw Ed25519 public key that it joined with; empty for none. Of a service those of its replicas, one
            after the other, the newest first.
        offline: what it may do while auth is out of reach.
        join_time: seconds since 1970.
        evict_time: seconds since 1970; 0 while it is welcome.
    """

    kind: str
    subject: str
    attributes: dict[str, str]
    hosts: tuple[str, ...]
    device_key: bytes = b""
    offline: Offline = Offline()
    join_time: float = 0.0
    evict_time: float = 0.0


@dataclass(frozen=True, slots=True)
class VouchedKey:
    """The sealing statement about a key of a node, good until `expires`."""

    node: str
    key_id: str
    jws: str
    expires: float

    @property
    def name(self) -> str:
        """Node and key, by which statements are listed."""
        return f"{self.node}/{self.key_id}"


class PeerStore(Protocol):
    """Records of enrollment, inside one transaction."""

    def add_join_token(self, token: JoinToken) -> None:
        """Add an unused token."""
        ...

    def take_join_token(self, token_hash: str) -> JoinToken | None:
        """Use a token up: returns it the first time, None ever after."""
        ...

    def forget_join_tokens(self, kind: str, subject: str) -> None:
        """Delete the unused tokens for one subject."""
        ...

    def forget_expired_join_tokens(self, now: float) -> None:
        """Delete the tokens that can no longer be used."""
        ...

    def put_peer(self, peer: Peer) -> None:
        """Add or replace a peer."""
        ...

    def peer(self, kind: str, subject: str) -> Peer | None:
        """A peer that has joined, evicted ones included."""
        ...

    def peers(self, after: tuple[str, str], limit: int) -> list[Peer]:
        """Peers by (kind, subject), strictly after `after`."""
        ...

    def put_statement(self, vouched: VouchedKey, now: float) -> None:
        """Keep the statement about a key in the place of an earlier one; those that have expired are forgotten."""
        ...

    def forget_statement(self, node: str) -> None:
        """A node has none any more."""
        ...

    def statements(self, now: float, after: str, limit: int) -> list[VouchedKey]:
        """Statements that are good at `now`, by name, strictly after `after`."""
        ...

    def longest_offline(self) -> float:
        """The longest time, in seconds, for which a welcome node may serve its site alone; 0 for none."""
        ...
