"""Who may call, and what for: projects, service accounts with their credentials and quotas, roles."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sealane.auth.v1 import identity_service_pb2 as pb
from sealane.auth.v1 import identity_service_pb2_grpc
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential to add. Name at most one of the first two; without either auth makes a secret.

    Args:
        passphrase: a person's, of at least 12 characters.
        public_key_jwk: public JWK as JSON, for clients that sign (``private_key_jwt``).
        expires: when it stops working; None for never.
    """

    passphrase: str = field(default="", repr=False)
    public_key_jwk: str = ""
    expires: datetime.datetime | None = None

    def message(self) -> pb.Credential:
        """The credential in the contract's form.

        Raises:
            InvalidArgument: two kinds at once.
        """
        if self.passphrase and self.public_key_jwk:
            raise InvalidArgument("a credential is a passphrase or a key, not both", field="credential")
        made = pb.Credential(secret="")
        if self.passphrase:
            made.passphrase = self.passphrase
        if self.public_key_jwk:
            made.public_key_jwk = self.public_key_jwk
        if self.expires is not None:
            made.expire_time.FromDatetime(self.expires)
        return made


class Accounts:
    """The service accounts of the project. An account is named by its id, or by its resource name."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(
        self,
        account: str,
        scopes: Sequence[str] = (),
        *,
        roles: Sequence[str] = (),
        credential: NewCredential | None = None,
    ) -> pb.ServiceAccount:
        """Create an account; if auth makes its secret, that is in this answer and nowhere else.

        Args:
            account: its id.
            scopes: scopes given directly, such as ``infer``, for an account that needs less than any role gives.
            roles: roles in the whole project, such as ``invoker``.
            credential: its first credential; None has a secret made.

        Raises:
            AlreadyExists: the id is taken, or was.
            PermissionDenied: it would hold more than the caller.
        """
        request = pb.CreateServiceAccountRequest(
            parent=self._session.parent,
            service_account_id=account,
            scopes=scopes,
            roles=roles,
            request_id=str(uuid.uuid4()),
        )
        if credential is not None:
            request.credential.CopyFrom(credential.message())
        return _stub(self._session).CreateServiceAccount(request, timeout=self._session.timeout)

    def get(self, account: str) -> pb.ServiceAccount:
        """An account, without secrets."""
        request = pb.GetServiceAccountRequest(name=self._name(account))
        return _stub(self._session).GetServiceAccount(request, timeout=self._session.timeout)

    def list(self) -> Iterator[pb.ServiceAccount]:
        """All accounts, by id, without secrets."""

        def fetch(token: str) -> pb.ListServiceAccountsResponse:
            request = pb.ListServiceAccountsRequest(parent=self._session.parent, page_token=token)
            return _stub(self._session).ListServiceAccounts(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.service_accounts)

    def delete(self, account: str) -> None:
        """Delete an account with all that belongs to it; its tokens are revoked, its id is not given out again."""
        request = pb.DeleteServiceAccountRequest(name=self._name(account))
        _stub(self._session).DeleteServiceAccount(request, timeout=self._session.timeout)

    def add_credential(self, account: str, credential: NewCredential | None = None) -> pb.Credential:
        """Add a credential beside those that are there; a secret that auth makes is in this answer alone."""
        request = pb.CreateCredentialRequest(
            parent=self._name(account),
            credential=(credential or NewCredential()).message(),
            request_id=str(uuid.uuid4()),
        )
        return _stub(self._session).CreateCredential(request, timeout=self._session.timeout)

    def credentials(self, account: str) -> Sequence[pb.Credential]:
        """The credentials of an account, without secrets, oldest first."""
        request = pb.ListCredentialsRequest(parent=self._name(account))
        return _stub(self._session).ListCredentials(request, timeout=self._session.timeout).credentials

    def delete_credential(self, account: str, credential: str) -> None:
        """Delete a credential by its id; the account's tokens are revoked."""
        name = f"{self._name(account)}/credentials/{credential}"
        request = pb.DeleteCredentialRequest(name=name)
        _stub(self._session).DeleteCredential(request, timeout=self._session.timeout)

    def quota(self, account: str = "") -> pb.Quota:
        """The quota of an account; of the project for an empty name."""
        name = self._name(account) if account else self._session.parent
        return _stub(self._session).GetQuota(pb.GetQuotaRequest(name=name), timeout=self._session.timeout)

    def set_quota(
        self,
        account: str = "",
        *,
        requests_per_second: float = 0.0,
        bytes_per_second: int = 0,
        concurrent_requests: int = 0,
    ) -> pb.Quota:
        """Set the quota of an account; of the project for an empty name, which needs an admin of the platform.

        Args:
            account: whose.
            requests_per_second: calls; 0 is without limit, as for the others.
            bytes_per_second: request bytes.
            concurrent_requests: calls at the same time.
        """
        quota = pb.Quota(
            requests_per_second=requests_per_second,
            bytes_per_second=bytes_per_second,
            concurrent_requests=concurrent_requests,
        )
        stub, timeout = _stub(self._session), self._session.timeout
        if account:
            name = self._name(account)
            return stub.UpdateAccountQuota(pb.UpdateAccountQuotaRequest(name=name, quota=quota), timeout=timeout)
        name = self._session.parent
        return stub.UpdateProjectQuota(pb.UpdateProjectQuotaRequest(name=name, quota=quota), timeout=timeout)

    def _name(self, account: str) -> str:
        return name_of(self._session, account)


class Roles:
    """Who holds which role."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def bind(self, account: str, role: str, *, model_prefix: str = "", platform: bool = False) -> pb.RoleBinding:
        """Give a role.

        Args:
            account: id or resource name of an account of the project.
            role: ``viewer``, ``invoker``, ``publisher``, ``deployer``, ``operator``, ``auditor`` or ``admin``.
            model_prefix: only for models whose ids begin so.
            platform: also for what belongs to no project: nodes, keys, projects, the whole audit log.

        Raises:
            PermissionDenied: the caller does not hold all that it grants.
        """
        member = name_of(self._session, account)
        request = pb.CreateRoleBindingRequest(
            parent=self._session.parent,
            role_binding=pb.RoleBinding(member=member, role=role, model_prefix=model_prefix, platform=platform),
            request_id=str(uuid.uuid4()),
        )
        return _stub(self._session).CreateRoleBinding(request, timeout=self._session.timeout)

    def list(self, account: str = "") -> Iterator[pb.RoleBinding]:
        """The role bindings of the project, or of one account."""
        member = name_of(self._session, account) if account else ""

        def fetch(token: str) -> pb.ListRoleBindingsResponse:
            request = pb.ListRoleBindingsRequest(parent=self._session.parent, member=member, page_token=token)
            return _stub(self._session).ListRoleBindings(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.role_bindings)

    def unbind(self, binding: str) -> None:
        """Take a role away, by the binding's id; the member's tokens are revoked."""
        name = binding if "/" in binding else f"{self._session.parent}/roleBindings/{binding}"
        request = pb.DeleteRoleBindingRequest(name=name)
        _stub(self._session).DeleteRoleBinding(request, timeout=self._session.timeout)


class Projects:
    """The tenants; needs an admin of the platform."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, project: str, *, admin: str = "") -> pb.Project:
        """Create a project, and the account `admin` in it as its administrator, where it is named."""
        request = pb.CreateProjectRequest(project_id=project, admin_account_id=admin, request_id=str(uuid.uuid4()))
        return _stub(self._session).CreateProject(request, timeout=self._session.timeout)

    def list(self) -> Iterator[pb.Project]:
        """All projects, by id."""

        def fetch(token: str) -> pb.ListProjectsResponse:
            request = pb.ListProjectsRequest(page_token=token)
            return _stub(self._session).ListProjects(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.projects)


def name_of(session: Session, account: str) -> str:
    """Resource name of an account of the project that is named by its id or its resource name."""
    return account if "/" in account else f"{session.parent}/serviceAccounts/{account}"


def _stub(session: Session) -> identity_service_pb2_grpc.IdentityServiceStub:
    return identity_service_pb2_grpc.IdentityServiceStub(session.channel("auth"))
