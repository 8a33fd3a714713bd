"""Ways to be somebody without keeping a secret of ours: a signing key, a login that lasts, an external token."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.auth.v1 import token_service_pb2_grpc
from sealane.client.access_tokens import EXCHANGE
from sealane.client.credentials import Issue
from sealane.errors import FailedPrecondition
from sealane.rpc.channel import connect
from sealane.security import jws

#: File of a data directory that keeps a login.
LOGIN = "login.json"
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_JWT = "urn:ietf:params:oauth:token-type:jwt"
_ASSERTION_SECONDS = 60
_ASK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PrivateKeyCredentials:
    """A service account that proves itself with a signature (``private_key_jwt``, RFC 7523).

    Args:
        client_id: its id, ``account@project``.
        signing_key: Ed25519 key whose public half is a credential of the account.
        scope: scopes to ask for, separated by spaces; empty asks for all that the account holds.
        project: its project; empty reads it from the first token.
    """

    client_id: str
    signing_key: Ed25519PrivateKey = field(repr=False)
    scope: str = ""
    project: str = ""

    @property
    def key(self) -> Ed25519PrivateKey | None:
        """The client makes its own for bound tokens: the account's key signs assertions alone."""
        return None

    def fetch(self, issue: Issue, audience: str, thumbprint: str) -> str:
        """A token from auth, for an assertion that is good once and for a minute."""
        now = int(time.time())
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": jws.ISSUER,
            "iat": now,
            "exp": now + _ASSERTION_SECONDS,
            "jti": str(uuid.uuid4()),
        }
        request = pb.IssueTokenRequest(
            grant_type="client_credentials",
            client_id=self.client_id,
            client_assertion_type=_ASSERTION,
            client_assertion=jws.sign(self.signing_key, {"typ": "JWT"}, claims),
            audience=audience,
            scope=self.scope,
            key_thumbprint=thumbprint,
        )
        return issue(request).access_token


@dataclass(frozen=True, slots=True)
class CertificateCredentials:
    """A service account that proves itself with its certificate on auth's mesh port (RFC 8705 section 2).

    Args:
        directory: key and certificate, as ``client.peers.certificate`` leaves them.
        auth_mesh: mesh port of auth, ``host:port``.
        scope: scopes to ask for, separated by spaces; empty asks for all that the account holds.
        project: its project; empty reads it from the first token.
    """

    directory: Path
    auth_mesh: str
    scope: str = ""
    project: str = ""

    @property
    def key(self) -> Ed25519PrivateKey | None:
        """The client makes its own: tokens are for the client ports, where the certificate is not shown."""
        return None

    def fetch(self, issue: Issue, audience: str, thumbprint: str) -> str:
        """A token from auth's mesh port.

        Raises:
            FailedPrecondition: there is no certificate in the directory.
        """
        from sealane.security import enroll, tls

        identity = tls.load(self.directory)
        if identity is None:
            raise FailedPrecondition(
                f"{self.directory} holds no certificate; get one with 'sealane peers certificate'",
                reason="NO_CERTIFICATE",
            )
        request = pb.IssueTokenRequest(
            grant_type="client_credentials", audience=audience, scope=self.scope, key_thumbprint=thumbprint
        )
        with connect(enroll.mesh_target(identity, "auth", self.auth_mesh)) as channel:
            stub = token_service_pb2_grpc.TokenServiceStub(channel)
            return stub.IssueToken(request, timeout=_ASK_SECONDS).access_token


@dataclass(frozen=True, slots=True)
class ExternalToken:
    """A pipeline or person with a token of an issuer that the project trusts.

    Args:
        token: gets a fresh one each time, since they live for minutes; GitHub Actions and Kubernetes have ways for it.
        project: project that trusts the issuer.
        scope: scopes to ask for, separated by spaces; empty asks for all that the rules give.
    """

    token: Callable[[], str] = field(repr=False)
    project: str
    scope: str = ""

    @property
    def key(self) -> Ed25519PrivateKey | None:
        """The client makes its own."""
        return None

    def fetch(self, issue: Issue, audience: str, thumbprint: str) -> str:
        """A token of ours for one of theirs."""
        request = pb.ExchangeTokenRequest(
            grant_type=EXCHANGE,
            subject_token=self.token(),
            subject_token_type=_JWT,
            audience=audience,
            scope=self.scope,
            key_thumbprint=thumbprint,
            project=f"projects/{self.project}",
        )
        return issue(request).access_token


@dataclass(frozen=True, slots=True)
class RefreshTokenFile:
    """A login that lasts: its refresh token is in a file of mode 0600 and replaced with each use.

    Args:
        path: the file, as :func:`log_in` writes it.
    """

    path: Path

    @property
    def key(self) -> Ed25519PrivateKey | None:
        """The client makes its own."""
        return None

    @property
    def project(self) -> str:
        """Project that was logged in to."""
        return read_login(self.path)["project"]

    def fetch(self, issue: Issue, audience: str, thumbprint: str) -> str:
        """A token from auth. Others that use the file wait: two uses of one refresh token would end the session."""
        with _alone(self.path):
            login = read_login(self.path)
            request = pb.IssueTokenRequest(
                grant_type="refresh_token",
                client_id=login["client_id"],
                refresh_token=login["refresh_token"],
                audience=audience,
                key_thumbprint=thumbprint,
            )
            issued = issue(request)
            write_login(self.path, {**login, "refresh_token": issued.refresh_token})
        return issued.access_token


def log_in(issue: Issue, path: Path, client_id: str, passphrase: str) -> None:
    """Begin a session with a person's passphrase, which is not kept; the refresh token is, in `path`.

    Args:
        issue: asks auth.
        path: the file.
        client_id: the person's account, ``account@project``.
        passphrase: hers.

    Raises:
        Unauthenticated: they are wrong.
        ResourceExhausted: too many wrong ones; wait.
    """
    request = pb.IssueTokenRequest(
        grant_type="client_credentials",
        client_id=client_id,
        client_secret=passphrase,
        audience="sealane-auth",
        scope="offline_access",
    )
    refresh_token, project = issue(request).refresh_token, client_id.rpartition("@")[2]
    write_login(path, {"client_id": client_id, "project": project, "refresh_token": refresh_token})


def log_out(revoke: Callable[[pb.RevokeTokenRequest], object], path: Path) -> None:
    """End the session in `path`, and forget it."""
    with _alone(path):
        login = read_login(path)
        client = pb.IssueTokenRequest(client_id=login["client_id"])
        revoke(pb.RevokeTokenRequest(token=login["refresh_token"], client=client))
        path.unlink()


def read_login(path: Path) -> dict[str, str]:
    """The login in a file.

    Raises:
        FailedPrecondition: there is none.
    """
    try:
        content = json.loads(path.read_text())
        return {name: str(content[name]) for name in ("client_id", "project", "refresh_token")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(f"{path} holds no login; run 'sealane login'", reason="NO_LOGIN") from error


def write_login(path: Path, login: dict[str, str]) -> None:
    """Replace the file in one step; nobody but its owner can ever read it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(login, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where everything but logins works

    lock = path.with_name(f"{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
