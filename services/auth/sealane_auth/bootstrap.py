"""What the first start makes: authority, auth's own certificate, signing key, admin credential."""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from sealane.clock import Clock
from sealane.security import tls
from sealane_auth.account_store import Account, Binding, Credential, Project
from sealane_auth.authority_files import Authority, CertificateLives
from sealane_auth.config import Config
from sealane_auth.enrollment import Enrollment
from sealane_auth.keyfile import KeyFile, write_secret
from sealane_auth.signing import Keyring, Lives
from sealane_auth.store import Store

ADMIN = "admin"


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


def ensure_records(store: Store, keyring: Keyring, project: str, admin_file: Path, now: float) -> None:
    """Signing key, first project and admin account; the credential goes to `admin_file` before it becomes valid."""
    keyring.prepare(store.keys)
    client_id = f"{ADMIN}@{project}"
    if store.accounts.account_by_client(client_id) is not None:
        return
    secret = secrets.token_urlsafe(32)
    credential = {"client_id": client_id, "client_secret": secret, "project": project}
    write_secret(admin_file, json.dumps(credential).encode())
    if project not in {each.project for each in store.accounts.projects("", 1000)}:
        store.accounts.add_project(Project(project, now))
    account = Account(project, ADMIN, client_id, (), now, secrets.token_hex(8))
    store.accounts.put_account(account)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    store.accounts.put_credential(Credential(account.name, secrets.token_hex(8), "secret", digest, now))
    binding_id = secrets.token_hex(8)
    store.accounts.put_binding(Binding(project, binding_id, account.name, "admin", "", platform=True, create_time=now))
