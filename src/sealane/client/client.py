"""The client: one object for everything that the suite offers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sealane.client.access_tokens import AccessTokens
from sealane.client.accounts import Accounts, Projects, Roles
from sealane.client.artifacts import Artifacts
from sealane.client.audit import Audit
from sealane.client.backups import Backups
from sealane.client.credentials import ClientCredentials, Credentials
from sealane.client.datasets import Datasets
from sealane.client.deployments import Deployments
from sealane.client.inference import Inference
from sealane.client.issuers import Issuers
from sealane.client.jobs import Jobs
from sealane.client.keys import Keys
from sealane.client.logins import LOGIN, RefreshTokenFile, log_in, log_out
from sealane.client.models import Models
from sealane.client.operations import JoinTokens, Nodes
from sealane.client.peers import Peers
from sealane.client.policies import Policies
from sealane.client.session import Session, Site
from sealane.errors import FailedPrecondition
from sealane.telemetry import Telemetry, disabled

HOME = "SEALANE_HOME"


class Client:
    """Everything that the suite offers, synchronous and safe to share among threads.

    Args:
        endpoints: service -> client port ``host:port``; ``auth``, ``registry``, ``scheduler``, ``inference``. Of
            ``inference`` there may be several, with commas between them: where one is away, calls go to the next.
        trust_bundle: root certificates, PEM, or the file that holds them.
        credentials: who calls: :class:`ClientCredentials`, :class:`PrivateKeyCredentials`, :class:`RefreshTokenFile`,
            :class:`CertificateCredentials`, :class:`ExternalToken` or :class:`StaticToken`.
        timeout: seconds for each control call.
        telemetry: records the client's own spans.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str],
        *,
        trust_bundle: bytes | Path,
        credentials: Credentials,
        timeout: float = 30.0,
        telemetry: Telemetry | None = None,
    ) -> None:
        bundle = trust_bundle.read_bytes() if isinstance(trust_bundle, Path) else trust_bundle
        self._session = Session(Site(endpoints, bundle, timeout, telemetry or disabled()), credentials)
        self.artifacts = Artifacts(self._session)
        self.models = Models(self._session, self.artifacts)
        self.deployments = Deployments(self._session)
        self.datasets = Datasets(self._session, self.artifacts)
        self.policies = Policies(self._session)
        self.backups = Backups(self._session)
        self.jobs = Jobs(self._session, self.artifacts)
        self.nodes = Nodes(self._session)
        self.accounts = Accounts(self._session)
        self.roles = Roles(self._session)
        self.projects = Projects(self._session)
        self.issuers = Issuers(self._session)
        self.access_tokens = AccessTokens(self._session)
        self.join_tokens = JoinTokens(self._session)
        self.audit = Audit(self._session)
        self.keys = Keys(self._session)
        self.peers = Peers(self._session)
        self.inference = Inference(self._session)

    @property
    def project(self) -> str:
        """Project that the client acts in."""
        return self._session.project

    def token(self, audience: str, *, bound: bool = False) -> str:
        """An access token, for tools that are not this SDK.

        Args:
            audience: ``sealane-auth``, ``sealane-registry``, ``sealane-scheduler`` or ``sealane-inference``.
            bound: bind it to this client's key; useless to anybody without that key.
        """
        return self._session.tokens.get(audience, bound=bound).text

    def log_in(self, path: Path, client_id: str, passphrase: str) -> None:
        """Begin a session with a person's passphrase; `path` keeps it for :class:`RefreshTokenFile`."""
        log_in(self._session.issue, path, client_id, passphrase)

    def log_out(self, path: Path) -> None:
        """End the session in `path`, and forget it."""
        log_out(self._session.revoke, path)

    def close(self) -> None:
        """End what workers keep for this client, and close all connections."""
        self.inference.close()
        self._session.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self.close()


def connect(
    data_dir: Path | str | None = None,
    *,
    credentials: Credentials | None = None,
    timeout: float = 30.0,
    telemetry: Telemetry | None = None,
) -> Client:
    """A client of the installation in a data directory, as ``sealane up --data DIR`` makes it.

    Args:
        data_dir: the directory; default: the environment's ``SEALANE_HOME``.
        credentials: who calls; default: who logged in with ``sealane login``, else the admin of ``DIR/admin.json``.
        timeout: seconds for each control call.
        telemetry: records the client's own spans.

    Raises:
        FailedPrecondition: no directory was named, or it is not one.
    """
    home = str(data_dir or os.environ.get(HOME, ""))
    if not home:
        raise FailedPrecondition(f"say which installation: pass its data directory or set {HOME}", reason="NO_HOME")
    root = Path(home)
    endpoints = _read(root / "endpoints.json")
    credentials = credentials or _credentials_in(root)
    try:
        bundle = (root / "pki" / "ca.pem").read_bytes()
    except OSError as error:
        raise _unreadable(root / "pki" / "ca.pem") from error
    return Client(endpoints, trust_bundle=bundle, credentials=credentials, timeout=timeout, telemetry=telemetry)


def _credentials_in(root: Path) -> Credentials:
    if (root / LOGIN).exists():
        return RefreshTokenFile(root / LOGIN)
    admin = _read(root / "admin.json")
    return ClientCredentials(
        admin.get("client_id", ""), admin.get("client_secret", ""), project=admin.get("project", "")
    )


def _read(path: Path) -> Mapping[str, str]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, dict):
        raise _unreadable(path)
    return {str(key): value for key, value in content.items() if isinstance(value, str)}


def _unreadable(path: Path) -> FailedPrecondition:
    return FailedPrecondition(
        f"{path} cannot be read; start the installation with 'sealane up --data {path.parent}' or name another",
        reason="NO_INSTALLATION",
    )
