"""What the first start makes: authority, auth's own certificate, signing key, admin credential."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from sealane.security import tls
from sealane_auth import authority
from sealane_auth.authority import Signer
from sealane_auth.issuer import SCOPES, ensure_signing_key, new_account
from sealane_auth.store import Store

ADMIN = "admin"


def ensure_authority(directory: Path, now: datetime.datetime) -> tuple[Signer, bytes]:
    """The intermediate that signs, and the trust bundle; made where they are missing.

    The root's key lies beside them (``root.key``) and is needed again only for the next intermediate:
    take it offline.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    root_pem, pair = directory / "root.pem", (directory / "intermediate.key", directory / "intermediate.pem")
    if not pair[1].exists():
        root = authority.make_root(now)
        intermediate = authority.make_intermediate(root, now)
        _write(directory / "root.key", root.key_pem)
        _write(root_pem, root.certificate_pem)
        _write(pair[0], intermediate.key_pem)
        _write(pair[1], intermediate.certificate_pem)
    return authority.load_signer(pair[0].read_bytes(), pair[1].read_bytes()), root_pem.read_bytes()


def own_identity(
    directory: Path, signer: Signer, trust_bundle: bytes, hosts: tuple[str, ...], now: datetime.datetime
) -> tls.PeerIdentity:
    """Auth's own certificate, made anew at every start."""
    private_key, request = tls.new_request()
    names = authority.service_names("auth", hosts)
    leaf = authority.issue_leaf(signer, request, names, now)
    chain = leaf.public_bytes(serialization.Encoding.PEM) + signer.certificate_pem
    return tls.store(directory, private_key, tls.Issued(chain, trust_bundle, names.spiffe_id, {}))


def ensure_records(store: Store, project: str, admin_file: Path, now: float) -> None:
    """Signing key and admin account; the credential goes to `admin_file` before it becomes valid."""
    ensure_signing_key(store, now)
    if store.account_by_client(f"{ADMIN}@{project}") is not None:
        return
    account, secret = new_account(project, ADMIN, SCOPES, now)
    credential = {"client_id": account.client_id, "client_secret": secret, "project": project}
    _write(admin_file, json.dumps(credential).encode())
    store.add_account(account)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(content)
    temporary.replace(path)
