"""Join tokens for everything that has no valid certificate yet."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sealane.client import Client, NodePlace
from sealane.security import tls


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is to join.

    Args:
        name: its id.
        identity: folder of its certificate.
        token: file that gets the join token.
        hosts: names and addresses by which it is reached.
        place: where a node stands; None for a service.
    """

    name: str
    identity: Path
    token: Path
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    place: NodePlace | None = None


def write_join_tokens(client: Client, subjects: Iterable[Subject]) -> list[str]:
    """Create a token for every subject without a valid certificate; returns their names."""
    joined = []
    for subject in subjects:
        present = tls.load(subject.identity)
        if present is not None and not present.expired(datetime.datetime.now(datetime.UTC)):
            continue
        created = client.join_tokens.create(
            service="" if subject.place else subject.name,
            node=subject.name if subject.place else "",
            place=subject.place,
            hosts=subject.hosts,
        )
        subject.token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        subject.token.touch(mode=0o600)
        subject.token.write_text(created.token)
        joined.append(subject.name)
    return joined


def write_admin(source: Path, target: Path, token_url: str) -> None:
    """``admin.json`` for people and tools: auth's credential with the token URL, mode 0600."""
    credential = json.loads(source.read_text())
    target.touch(mode=0o600)
    target.write_text(json.dumps({**credential, "token_url": token_url}))
