"""Hands out what containers need to join, once auth serves: ``python -m sealane_local.bootstrap``, then it is over.

Each subject gets a folder of its own, mounted by it alone, with the root certificate and a join token. A token is
good for one hour and one use, so every run makes new ones; who has a certificate does not look at them.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from sealane.client import Client, ClientCredentials
from sealane.errors import FailedPrecondition
from sealane.rpc.entry import run_sync
from sealane_local.join import Subject
from sealane_local.plan import CLOUD, EDGE, SERVICES

PREFIX = "SEALANE_BOOTSTRAP_"
TOKEN, ROOTS = "token", "ca.pem"
_LOCAL = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Config:
    """Read from ``SEALANE_BOOTSTRAP_*``."""

    auth: str
    """Client port of auth, ``host:port``, as this process reaches it."""
    endpoints: tuple[str, ...]
    """``name=host:port`` of each service as people reach it, for ``endpoints.json``."""
    auth_data: Path = Path("/auth")
    """Data folder of auth: the root certificate and the first credential are read there."""
    join: Path = Path("/enroll")
    """A folder per subject lies here."""
    site: Path = Path("/site")
    """What a client needs is written here, as ``sealane up --data DIR`` writes it."""


def run(config: Config) -> None:
    """Write every folder.

    Raises:
        FailedPrecondition: the data folder of auth is not there or not readable.
        SealaneError: auth refused.
    """
    try:
        roots = (config.auth_data / "pki" / "root.pem").read_bytes()
        admin: dict[str, str] = json.loads((config.auth_data / "admin.json").read_text())
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"{config.auth_data} is not the data folder of auth, or is not readable by this user; mount it there"
        ) from error
    endpoints = dict(pair.split("=", 1) for pair in config.endpoints)
    credentials = ClientCredentials(admin["client_id"], admin["client_secret"], project=admin["project"])
    with Client({"auth": config.auth}, trust_bundle=roots, credentials=credentials) as client:
        for subject in subjects(config.join):
            created = client.join_tokens.create(
                service="" if subject.place else subject.name,
                node=subject.name if subject.place else "",
                place=subject.place,
                hosts=subject.hosts,
            )
            write(subject.token.with_name(ROOTS), roots, 0o444)
            write(subject.token, created.token.encode(), 0o400)
    site = {**admin, "token_url": f"https://{endpoints['auth_http']}/oauth2/token"}
    (config.site / "pki").mkdir(exist_ok=True)
    write(config.site / "pki" / "ca.pem", roots, 0o444)
    write(config.site / "endpoints.json", json.dumps(endpoints, indent=2).encode(), 0o444)
    write(config.site / "admin.json", json.dumps(site).encode(), 0o600)


def subjects(join: Path) -> list[Subject]:
    """Who joins, and by which names the containers reach each other."""
    services = [Subject(name, Path(), join / name / TOKEN, (*_LOCAL, name)) for name in SERVICES]
    workers = [
        Subject(plan.node, Path(), join / plan.node / TOKEN, (*_LOCAL, f"worker-{plan.tier}"), plan.place)
        for plan in (CLOUD, EDGE)
    ]
    return services + workers


def write(path: Path, content: bytes, mode: int) -> None:
    """Put a file in place at once; its mode holds from the first byte."""
    temporary = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.touch(mode=0o600)
    temporary.write_bytes(content)
    temporary.chmod(mode)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(run_sync(Config, PREFIX, run))
