"""The rule of offline grants: which edge node may serve its site alone, for how long, and for whom."""

from __future__ import annotations

import json

from sealane.clock import Clock
from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.names import parse
from sealane.records.tables import Actor
from sealane.security import jws, offline
from sealane_auth.enrollment import spiffe_id_of
from sealane_auth.rights import grants_of
from sealane_auth.signing import Keyring
from sealane_auth.store import Store


class SiteGrants:
    """Issues offline grants."""

    def __init__(self, clock: Clock, keyring: Keyring) -> None:
        self._clock = clock
        self._keyring = keyring

    def issue(self, store: Store, node: str, public_key: bytes) -> tuple[str, float]:
        """A grant for a node and its key, and when it is over."""
        if len(public_key) != 32:
            raise InvalidArgument(f"an Ed25519 key has 32 bytes, not {len(public_key)}", field="public_key")
        peer, now = store.peers.peer("node", node), self._clock.now()
        if peer is None or peer.evict_time or not peer.offline.ttl:
            raise FailedPrecondition(
                f"node {node} was given no time offline; let it join with a token that has offline_ttl",
                reason="OFFLINE_NOT_ALLOWED",
            )
        accounts = [account for name in peer.offline.accounts if (account := _site_account(store, name)) is not None]
        request = offline.GrantRequest(node, public_key, accounts, peer.attributes, peer.offline.ttl)
        grant = offline.issue(request, self._keyring.signing(store.keys), now)
        actor = Actor(spiffe_id_of("node", node), "")
        store.record(actor, "IssueOfflineGrant", f"nodes/{node}", now, key_id=jws.thumbprint(public_key))
        return grant, now + peer.offline.ttl


def _site_account(store: Store, name: str) -> offline.SiteAccount | None:
    """The account as it stands now; None for one that is gone, may not infer, or has no Ed25519 key."""
    project, account_id = parse(name, "projects/*/serviceAccounts/*", "site_accounts")
    account = store.accounts.account(project, account_id)
    if account is None or account.deleted:
        return None
    grants = grants_of(store, account)
    if "infer" not in grants.scopes:
        return None
    for credential in store.accounts.credentials(name):
        jwk = json.loads(credential.value) if credential.kind == "public_key" else {}
        if jwk.get("kty") == "OKP" and jwk.get("crv") == "Ed25519":
            return offline.SiteAccount(name, jws.decode(jwk["x"]), grants.models.get("infer", ()))
    return None
