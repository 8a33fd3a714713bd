"""The client: one object for everything that the suite offers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sealane.client.artifacts import Artifacts
from sealane.client.credentials import ClientCredentials, Credentials
from sealane.client.deployments import Deployments
from sealane.client.inference import Inference
from sealane.client.jobs import Jobs
from sealane.client.models import Models
from sealane.client.operations import Accounts, JoinTokens, Nodes
from sealane.client.session import Session, Site
from sealane.errors import FailedPrecondition
from sealane.telemetry import Telemetry, disabled

HOME = "SEALANE_HOME"


class Client:
    """Everything that the suite offers, synchronous and safe to share among threads.

    Args:
        endpoints: service -> client port ``host:port``; ``auth``, ``registry``, ``scheduler``, ``inference``.
        trust_bundle: root certificates, PEM, or the file that holds them.
        credentials: who calls: :class:`ClientCredentials` or :class:`StaticToken`.
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
        self.jobs = Jobs(self._session, self.artifacts)
        self.nodes = Nodes(self._session)
        self.accounts = Accounts(self._session)
        self.join_tokens = JoinTokens(self._session)
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

    def close(self) -> None:
        """Close all connections."""
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
        credentials: who calls; default: the admin of ``DIR/admin.json``.
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
    if credentials is None:
        admin = _read(root / "admin.json")
        credentials = ClientCredentials(
            admin.get("client_id", ""), admin.get("client_secret", ""), project=admin.get("project", "")
        )
    try:
        bundle = (root / "pki" / "ca.pem").read_bytes()
    except OSError as error:
        raise _unreadable(root / "pki" / "ca.pem") from error
    return Client(endpoints, trust_bundle=bundle, credentials=credentials, timeout=timeout, telemetry=telemetry)


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
