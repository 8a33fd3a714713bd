"""What is no longer good: what is kept of it."""

from __future__ import annotations

from typing import Protocol

from sealane.security.revocations import Revoked


class RevocationStore(Protocol):
    """Records of revocations, inside one transaction. Sequences grow and are never reused."""

    def add(self, revoked: Revoked, now: float, until: float = 0.0) -> int:
        """Add one; its sequence. `until` is when it no longer matters, 0 for never."""
        ...

    def after(self, sequence: int, now: float, limit: int | None = None) -> list[tuple[int, Revoked]]:
        """Those after `sequence` that still matter, oldest first, `limit` of them at most."""
        ...

    def issuers(self, now: float) -> set[str]:
        """Key identifiers of the intermediates that are distrusted."""
        ...

    def count_tokens(self, project: str, now: float) -> int:
        """How many revocations of single tokens of a project still matter."""
        ...

    def last(self) -> int:
        """Sequence of the last one ever added; 0 for none."""
        ...

    def epoch_of(self, subject: str) -> int:
        """First epoch of a subject that is good."""
        ...

    def revoke_subject(self, subject: str, now: float) -> int:
        """Revoke all tokens that a subject has now; the new epoch."""
        ...

    def revoke_token(self, project: str, token_id: str, until: float, now: float) -> None:
        """Revoke one token, which ends by itself at `until`."""
        ...
