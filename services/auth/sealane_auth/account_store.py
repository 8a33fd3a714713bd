"""Projects, service accounts, their credentials, role bindings and quotas: what is kept of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Project:
    """A tenant."""

    project: str
    create_time: float


@dataclass(frozen=True, slots=True)
class Account:
    """A service account. `deleted` keeps its id from being given out again."""

    project: str
    account_id: str
    client_id: str
    scopes: tuple[str, ...]
    create_time: float
    etag: str
    deleted: bool = False

    @property
    def name(self) -> str:
        """Resource name, which is the subject of its tokens."""
        return f"projects/{self.project}/serviceAccounts/{self.account_id}"


@dataclass(frozen=True, slots=True)
class Credential:
    """What an account proves itself with.

    Args:
        account: resource name of the account.
        credential_id: id below it.
        kind: ``secret``, ``passphrase`` or ``public_key``.
        value: SHA-256 of the secret in hex, argon2id hash in PHC form, or the public JWK as JSON.
        create_time: seconds since 1970.
        expire_time: seconds since 1970; 0 for never.
    """

    account: str
    credential_id: str
    kind: str
    value: str
    create_time: float
    expire_time: float = 0.0

    def good(self, now: float) -> bool:
        """Whether it has not expired."""
        return not self.expire_time or now < self.expire_time


@dataclass(frozen=True, slots=True)
class Binding:
    """A role that an account holds."""

    project: str
    binding_id: str
    member: str
    role: str
    model_prefix: str
    platform: bool
    create_time: float


class ProjectStore(Protocol):
    """Projects, inside one transaction."""

    def add_project(self, project: Project) -> None:
        """Add; a taken id raises AlreadyExists."""
        ...

    def project(self, project: str) -> Project | None:
        """A project."""
        ...

    def projects(self, after: str, limit: int) -> list[Project]:
        """Projects by id, strictly after `after`."""
        ...


class RightStore(Protocol):
    """Role bindings and quotas, inside one transaction."""

    def put_binding(self, binding: Binding) -> None:
        """Add a binding."""
        ...

    def bindings(self, project: str, member: str = "") -> list[Binding]:
        """Bindings of a project, or of one member, by id."""
        ...

    def platform_bindings(self) -> list[Binding]:
        """Bindings for the platform, of all projects, by project and id."""
        ...

    def delete_binding(self, project: str, binding_id: str) -> Binding | None:
        """Delete one; what it was."""
        ...

    def put_quota(self, name: str, quota: tuple[float, int, int]) -> None:
        """Set the quota of a project or account: requests and bytes a second, calls at once."""
        ...

    def quota(self, name: str) -> tuple[float, int, int] | None:
        """The quota of a project or account."""
        ...


class AccountStore(ProjectStore, RightStore, Protocol):
    """Records of who may call, inside one transaction."""

    def put_account(self, account: Account) -> None:
        """Add, or replace the one of the same name."""
        ...

    def account(self, project: str, account_id: str) -> Account | None:
        """An account, deleted ones included."""
        ...

    def account_by_client(self, client_id: str) -> Account | None:
        """The account of a client id, None for a deleted one."""
        ...

    def accounts(self, project: str, after: str, limit: int) -> list[Account]:
        """Accounts of a project that are not deleted, by id, strictly after `after`."""
        ...

    def put_credential(self, credential: Credential) -> None:
        """Add a credential."""
        ...

    def credentials(self, account: str) -> list[Credential]:
        """All of an account, oldest first."""
        ...

    def delete_credentials(self, account: str, credential_id: str = "") -> int:
        """Delete one, or all of an account; how many there were."""
        ...
