"""What the first start makes: authority, auth's own certificate, signing key, admin credential."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path

from sealane.clock import Clock
from sealane.security import tls
from sealane.security.key_file import KeyFile, write_secret
from sealane_auth.accounts import ADMIN, AccountRules
from sealane_auth.authority_files import Authority, CertificateLives
from sealane_auth.config import Config
from sealane_auth.enrollment import Enrollment
from sealane_auth.signing import Keyring, Lives
from sealane_auth.store import Store


@dataclass(frozen=True, slots=True)
class Secrets:
    """What auth signs with."""

    authority: Authority
    keyring: Keyring


def open_secrets(config: Config, clock: Clock) -> Secrets:
    """The authority and the keyring, both under the key file.

    Raises:
        FailedPrecondition: the key file is missing or another one.
    """
    path = config.key_file or config.data_dir.parent / "auth.key"
    keyfile = KeyFile.at(path, create=not _has_sealed(config.data_dir / "pki"))
    days = datetime.timedelta(days=config.intermediate_days)
    lives = CertificateLives(days, datetime.timedelta(seconds=config.leaf_seconds))
    authority = Authority(config.data_dir / "pki", keyfile, lives)
    authority.open(datetime.datetime.fromtimestamp(clock.now(), datetime.UTC))
    key_life = config.signing_key_days * 86_400.0
    return Secrets(authority, Keyring(clock, keyfile, Lives(config.token_seconds, config.key_cache_seconds, key_life)))


def _has_sealed(directory: Path) -> bool:
    """Whether something was encrypted here; versions before kept the keys in clear."""
    path = directory / "intermediate.key"
    return path.exists() and not path.read_bytes().startswith(b"-----BEGIN")


def own_identity(directory: Path, enrollment: Enrollment, hosts: tuple[str, ...]) -> tls.PeerIdentity:
    """Auth's own certificate; made anew at every start, and while it runs before it expires."""
    private_key, request = tls.new_request()
    issued = enrollment.own_certificate(hosts, request)
    return tls.store(directory, private_key, tls.Issued(issued.chain, enrollment.trust_bundle, issued.spiffe_id, {}))


def ensure_records(store: Store, keyring: Keyring, project: str, admin_file: Path, clock: Clock) -> None:
    """Signing key, first project and admin account; the credential is on disk before the transaction commits."""
    keyring.prepare(store.keys)
    if store.accounts.account_by_client(f"{ADMIN}@{project}") is not None:
        return
    account, secret = AccountRules(clock).create_first_admin(store, project)
    credential = {"client_id": account.client_id, "client_secret": secret, "project": project}
    write_secret(admin_file, json.dumps(credential).encode())
