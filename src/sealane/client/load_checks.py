"""Has workers load variants once that nobody loaded yet."""

from __future__ import annotations

from sealane.client.session import Session


def ensure(session: Session, version: str) -> None:
    """Have every variant of a version loaded once; `version` is its full name by number."""
    raise NotImplementedError
