"""What the first start makes: authority, auth's own certificate, signing key, admin credential."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sealane.security import tls
from sealane_auth import authority
from sealane_auth.authority import Signer
from sealane_auth.issuer import SCOPES, ensure_signing_key, new_account
from sealane_auth.store import Store

ADMIN = "admin"


def ensure_authority(directory: Path, now: datetime.datetime) -> tuple[Signer, bytes]:
    """The intermediate that signs, and the trust bundle; made where they are missing.

    The root's key lies beside them (``root.key``): take it offline. It is needed again when two thirds of
    the intermediate's 90 days are over; a start with it in place then makes the next one.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    root_pem, root_key = directory / "root.pem", directory / "root.key"
    intermediate_pem, intermediate_key = directory / "intermediate.pem", directory / "intermediate.key"
    if not root_pem.exists():
        root = authority.make_root(now)
        _write(root_key, root.key_pem)
        _write(root_pem, root.certificate_pem)
    present = None
    if intermediate_pem.exists() and intermediate_key.exists():
        present = authority.load_signer(intermediate_key.read_bytes(), intermediate_pem.read_bytes())
    if present is None or (_is_old(present.certificate, now) and root_key.exists()):
        root = authority.load_signer(root_key.read_bytes(), root_pem.read_bytes())
        present = authority.make_intermediate(root, now)
        _write(intermediate_key, present.key_pem)
        _write(intermediate_pem, present.certificate_pem)
    return present, root_pem.read_bytes()


def _is_old(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return now >= certificate.not_valid_before_utc + life * 2 / 3


def own_identity(
    directory: Path, signer: Signer, trust_bundle: bytes, hosts: tuple[str, ...], now: datetime.datetime
) -> tls.PeerIdentity:
    """Auth's own certificate; made anew at every start, and while it runs before it expires."""
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
