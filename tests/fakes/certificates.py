"""A certificate authority for tests, with auth's own rules."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from sealane.security import tls
from sealane.security.certificate import key_id_of
from sealane_auth import authority


class Pki:
    """Root and intermediate of now."""

    def __init__(self) -> None:
        self.now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)
        root = authority.make_root(self.now)
        self.root_pem = root.certificate_pem
        self.signer = authority.make_intermediate(root, self.now)
        self.issuer_key_id = key_id_of(self.signer.certificate)

    def identity(self, folder: Path, kind: str, subject: str) -> tls.PeerIdentity:
        """The certificate of a service or node, on disk."""
        names = (authority.service_names if kind == "service" else authority.node_names)(subject)
        private, request = tls.new_request()
        validity = authority.Validity(self.now, self.now + authority.LEAF_LIFE)
        leaf = authority.issue_leaf(self.signer, request, names, validity)
        chain = leaf.public_bytes(serialization.Encoding.PEM) + self.signer.certificate_pem
        return tls.store(folder, private, tls.Issued(chain, self.root_pem, names.spiffe_id, {}))
