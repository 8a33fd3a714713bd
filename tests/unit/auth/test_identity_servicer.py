"""IdentityService and FederationService on their database thread: repeats, pages, what is shown and what is kept."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from auth_records import prepare

from sealane.auth.v1 import federation_service_pb2 as federation_pb
from sealane.auth.v1 import identity_service_pb2 as pb
from sealane.auth.v1 import token_service_pb2
from sealane.clock import ManualClock
from sealane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from sealane.records import tables
from sealane.records.database import Database
from sealane.records.transactions import Transactions
from sealane.rpc.call import Call, Identity, Peer
from sealane.rpc.policy import methods_of
from sealane.security.revocations import Revocations
from sealane_auth.accounts import AccountRules
from sealane_auth.federation import FederationRules
from sealane_auth.federation_servicer import FederationServicer
from sealane_auth.identity_servicer import IdentityServicer
from sealane_auth.revocations import Hub
from sealane_auth.store import Store
from sealane_auth.store_sql import SqlStore

PHRASE = "correct horse battery"
ADA = "projects/p/serviceAccounts/ada"


@dataclass(slots=True)
class Desk:
    """Both servicers, and the admin of the platform as the caller."""

    database: Database
    identity: IdentityServicer
    federation: FederationServicer
    revocations: Revocations

    def call(self) -> Call:
        """A call by the admin."""
        method = methods_of(token_service_pb2.DESCRIPTOR.services_by_name["TokenService"])[0]
        made = Call(method, {}, Peer(), deadline=1e12)
        made.identity = Identity("projects/p/serviceAccounts/admin", "p")
        return made

    async def account(self, account_id: str = "ada", **fields: object) -> pb.ServiceAccount:
        """A new account."""
        request = pb.CreateServiceAccountRequest(parent="projects/p", service_account_id=account_id, **fields)  # type: ignore[arg-type]
        return await self.identity.CreateServiceAccount(request, self.call())

    def everything(self) -> str:
        """All rows of all tables, as text."""

        def read(connection: sa.Connection) -> str:
            names = connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type='table'")).scalars().all()
            return "\n".join(str(connection.execute(sa.text(f'SELECT * FROM "{name}"')).all()) for name in names)

        return self.database.read(read).result()


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    clock, database = ManualClock(), Database("sqlite://")
    rules = AccountRules(clock)

    def ready(connection: sa.Connection) -> None:
        prepare(connection)
        rules.create_first_admin(SqlStore(connection), "p")

    database.start(ready)
    records: Transactions[Store] = Transactions(database, SqlStore, clock)
    revocations = Revocations(clock)
    hub = Hub(records, revocations, clock)
    try:
        yield Desk(
            database,
            IdentityServicer(records, rules, hub),
            FederationServicer(records, FederationRules(clock), hub),
            revocations,
        )
    finally:
        database.close()


async def test_a_repeat_makes_one_account_and_shows_no_secret(desk: Desk) -> None:
    repeated = {"roles": ["invoker"], "request_id": str(uuid.uuid4())}
    first = await desk.account(**repeated)
    second = await desk.account(**repeated)
    assert first.client_secret and not second.client_secret
    assert second.name == first.name == ADA and list(second.roles) == ["invoker"]
    assert first.client_secret not in desk.everything()
    with pytest.raises(AlreadyExists):
        await desk.account(roles=["viewer"], request_id=repeated["request_id"])


async def test_a_passphrase_is_nowhere_but_in_its_hash(desk: Desk) -> None:
    credential = pb.Credential(passphrase=PHRASE)
    made = await desk.account(roles=["viewer"], credential=credential, request_id=str(uuid.uuid4()))
    assert not made.client_secret
    request = pb.CreateCredentialRequest(parent=ADA, credential=credential, request_id=str(uuid.uuid4()))
    await desk.identity.CreateCredential(request, desk.call())
    kept = desk.everything()
    assert PHRASE not in kept and kept.count("$argon2id$") == 2
    # What is kept to recognise a repeat is a fast hash, so it must be of a request without the passphrase.
    content = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    assert hashlib.sha256(content).hexdigest() not in kept


async def test_credentials_are_listed_by_kind_and_shown_once(desk: Desk) -> None:
    await desk.account(roles=["viewer"])
    made = await desk.identity.CreateCredential(
        pb.CreateCredentialRequest(parent=ADA, credential=pb.Credential(secret="")), desk.call()
    )
    assert len(made.secret) == 43
    listed = await desk.identity.ListCredentials(pb.ListCredentialsRequest(parent=ADA), desk.call())
    assert [(each.WhichOneof("kind"), each.secret) for each in listed.credentials] == [("secret", "")] * 2
    for wrong in (pb.Credential(), pb.Credential(secret="chosen by me"), pb.Credential(passphrase="short")):
        with pytest.raises(InvalidArgument):
            request = pb.CreateCredentialRequest(parent=ADA, credential=wrong)
            await desk.identity.CreateCredential(request, desk.call())
    await desk.identity.DeleteCredential(pb.DeleteCredentialRequest(name=made.name), desk.call())
    with pytest.raises(NotFound):
        await desk.identity.DeleteCredential(pb.DeleteCredentialRequest(name=made.name), desk.call())
    assert desk.revocations.sequence == 1


async def test_a_refused_deletion_changes_nothing(desk: Desk) -> None:
    with pytest.raises(FailedPrecondition):
        request = pb.DeleteServiceAccountRequest(name="projects/p/serviceAccounts/admin")
        await desk.identity.DeleteServiceAccount(request, desk.call())
    listed = await desk.identity.ListCredentials(
        pb.ListCredentialsRequest(parent="projects/p/serviceAccounts/admin"), desk.call()
    )
    assert len(listed.credentials) == 1


async def test_lists_come_in_pages(desk: Desk) -> None:
    for number in range(5):
        await desk.account(f"a{number}", roles=["viewer"])
    names, token = [], ""
    while True:
        request = pb.ListServiceAccountsRequest(parent="projects/p", page_size=2, page_token=token)
        page = await desk.identity.ListServiceAccounts(request, desk.call())
        names += [account.client_id for account in page.service_accounts]
        token = page.next_page_token
        if not token:
            break
    assert names == ["a0@p", "a1@p", "a2@p", "a3@p", "a4@p", "admin@p"]
    found, token = 0, ""
    while True:
        request_ = pb.ListRoleBindingsRequest(parent="projects/p", page_size=4, page_token=token)
        bindings = await desk.identity.ListRoleBindings(request_, desk.call())
        found, token = found + len(bindings.role_bindings), bindings.next_page_token
        if not token:
            break
    assert found == 6


async def test_a_binding_and_a_quota(desk: Desk) -> None:
    await desk.account(roles=["viewer"])
    wanted = pb.RoleBinding(member=ADA, role="publisher", model_prefix="digits-")
    request = pb.CreateRoleBindingRequest(parent="projects/p", role_binding=wanted)
    made = await desk.identity.CreateRoleBinding(request, desk.call())
    assert (made.member, made.role, made.model_prefix) == (ADA, "publisher", "digits-")
    account = await desk.identity.GetServiceAccount(pb.GetServiceAccountRequest(name=ADA), desk.call())
    assert "models:write" in account.scopes and list(account.roles) == ["viewer"]
    await desk.identity.DeleteRoleBinding(pb.DeleteRoleBindingRequest(name=made.name), desk.call())
    quota = pb.Quota(requests_per_second=2.5, bytes_per_second=10, concurrent_requests=3)
    await desk.identity.UpdateAccountQuota(pb.UpdateAccountQuotaRequest(name=ADA, quota=quota), desk.call())
    read = await desk.identity.GetQuota(pb.GetQuotaRequest(name=ADA), desk.call())
    assert (read.requests_per_second, read.bytes_per_second, read.concurrent_requests) == (2.5, 10, 3)
    with pytest.raises(InvalidArgument):  # an admin of a project may not set the project's by the account's method
        request_ = pb.UpdateAccountQuotaRequest(name="projects/p", quota=quota)
        await desk.identity.UpdateAccountQuota(request_, desk.call())


async def test_projects(desk: Desk) -> None:
    request = pb.CreateProjectRequest(project_id="q", admin_account_id="root", request_id=str(uuid.uuid4()))
    for _ in range(2):
        assert (await desk.identity.CreateProject(request, desk.call())).name == "projects/q"
    listed = await desk.identity.ListProjects(pb.ListProjectsRequest(), desk.call())
    assert [project.name for project in listed.projects] == ["projects/p", "projects/q"]
    root = await desk.identity.GetServiceAccount(
        pb.GetServiceAccountRequest(name="projects/q/serviceAccounts/root"), desk.call()
    )
    assert list(root.roles) == ["admin"] and "projects" not in root.scopes


async def test_trusted_issuers_are_kept_and_listed(desk: Desk) -> None:
    issuer = federation_pb.TrustedIssuer(
        issuer="https://sso.example/realms/acme",
        audience="sealane",
        rules=[federation_pb.ClaimRule(claims={"groups": "ml"}, roles=["viewer"], model_prefix="digits")],
    )
    request = federation_pb.CreateTrustedIssuerRequest(
        parent="projects/p", trusted_issuer_id="sso", trusted_issuer=issuer, request_id=str(uuid.uuid4())
    )
    first = await desk.federation.CreateTrustedIssuer(request, desk.call())
    assert await desk.federation.CreateTrustedIssuer(request, desk.call()) == first
    listed = await desk.federation.ListTrustedIssuers(
        federation_pb.ListTrustedIssuersRequest(parent="projects/p"), desk.call()
    )
    (found,) = listed.trusted_issuers
    assert found.name == "projects/p/trustedIssuers/sso" and found.rules == issuer.rules
    delete = federation_pb.DeleteTrustedIssuerRequest(name=found.name)
    await desk.federation.DeleteTrustedIssuer(delete, desk.call())
    with pytest.raises(NotFound):
        await desk.federation.DeleteTrustedIssuer(delete, desk.call())
    count = desk.database.read(lambda c: c.execute(sa.select(sa.func.count()).select_from(tables.audit)).scalar())
    assert (count.result() or 0) >= 2
