"""IdentityService: proto to plain, call the rules, plain to proto."""

from __future__ import annotations

import asyncio

from google.protobuf.empty_pb2 import Empty

from sealane.auth.v1 import identity_service_pb2 as pb
from sealane.errors import InvalidArgument
from sealane.names import parse
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import Transactions, actor
from sealane.rpc.call import Call, Quota
from sealane.rpc.times import seconds_of, time_of
from sealane.security.permissions import Bound
from sealane_auth.account_store import Account, Binding, Credential, Project
from sealane_auth.accounts import AccountRules, NewAccount, NewCredential, held_by
from sealane_auth.passphrases import Passphrases
from sealane_auth.revocations import Hub
from sealane_auth.rights import ACCOUNT, account_of
from sealane_auth.store import Store

_PROJECT = "projects/*"


class IdentityServicer:
    """IdentityService."""

    def __init__(self, records: Transactions[Store], rules: AccountRules, hub: Hub) -> None:
        self._records = records
        self._rules = rules
        self._hub = hub
        self._passphrases = Passphrases()

    async def CreateProject(self, request: pb.CreateProjectRequest, call: Call) -> pb.Project:
        who, secrets = actor(call, request.project_id), list[str]()

        def create(store: Store) -> pb.Project:
            made = _project(self._rules.create_project(store, who, request.project_id))
            if request.admin_account_id:
                admin = self._rules.create_project_admin(store, who, request.project_id, request.admin_account_id)
                secrets.append(admin[1])
                made.admin.CopyFrom(_account(store, admin[0]))
            return made

        answer = pb.Project.FromString(await self._records.once(call, request, request.request_id, create))
        if secrets:
            answer.admin.client_secret = secrets[0]
        return answer

    async def ListProjects(self, request: pb.ListProjectsRequest, call: Call) -> pb.ListProjectsResponse:
        size, after = page_of(request.page_size), read_token(request.page_token)
        found = await self._records.read(lambda store: store.accounts.projects(after, size + 1))
        more = write_token(found[size - 1].project) if len(found) > size else ""
        return pb.ListProjectsResponse(projects=[_project(each) for each in found[:size]], next_page_token=more)

    async def CreateServiceAccount(self, request: pb.CreateServiceAccountRequest, call: Call) -> pb.ServiceAccount:
        (project,) = parse(request.parent, _PROJECT, "parent")
        who, secrets = actor(call, project), list[str]()
        credential = await self._wanted(request.credential) if request.HasField("credential") else NewCredential()
        wanted = NewAccount(project, request.service_account_id, request.scopes, request.roles, credential)
        kept = pb.CreateServiceAccountRequest()
        kept.CopyFrom(request)
        _forget_passphrase(kept.credential)

        def create(store: Store) -> pb.ServiceAccount:
            account, secret = self._rules.create_account(store, who, wanted)
            secrets.append(secret)
            return _account(store, account)

        answer = pb.ServiceAccount.FromString(await self._records.once(call, kept, request.request_id, create))
        answer.client_secret = "".join(secrets)
        return answer

    async def GetServiceAccount(self, request: pb.GetServiceAccountRequest, call: Call) -> pb.ServiceAccount:
        return await self._records.read(lambda store: _account(store, account_of(store, request.name)))

    async def ListServiceAccounts(
        self, request: pb.ListServiceAccountsRequest, call: Call
    ) -> pb.ListServiceAccountsResponse:
        (project,) = parse(request.parent, _PROJECT, "parent")
        size, after = page_of(request.page_size), read_token(request.page_token)

        def read(store: Store) -> pb.ListServiceAccountsResponse:
            found = store.accounts.accounts(project, after, size + 1)
            more = write_token(found[size - 1].account_id) if len(found) > size else ""
            accounts = [_account(store, each) for each in found[:size]]
            return pb.ListServiceAccountsResponse(service_accounts=accounts, next_page_token=more)

        return await self._records.read(read)

    async def DeleteServiceAccount(self, request: pb.DeleteServiceAccountRequest, call: Call) -> Empty:
        who = actor(call, parse(request.name, ACCOUNT)[0])
        await self._records.write(lambda store: self._rules.delete_account(store, who, request.name))
        await self._hub.changed()
        return Empty()

    async def CreateCredential(self, request: pb.CreateCredentialRequest, call: Call) -> pb.Credential:
        who, secrets = actor(call, parse(request.parent, ACCOUNT, "parent")[0]), list[str]()
        wanted = await self._wanted(request.credential)
        kept = pb.CreateCredentialRequest()
        kept.CopyFrom(request)
        _forget_passphrase(kept.credential)

        def create(store: Store) -> pb.Credential:
            made, secret = self._rules.create_credential(store, who, request.parent, wanted)
            secrets.append(secret)
            return _credential(made)

        answer = pb.Credential.FromString(await self._records.once(call, kept, request.request_id, create))
        if secrets and secrets[0]:
            answer.secret = secrets[0]
        return answer

    async def ListCredentials(self, request: pb.ListCredentialsRequest, call: Call) -> pb.ListCredentialsResponse:
        def read(store: Store) -> list[Credential]:
            return store.accounts.credentials(account_of(store, request.parent, "parent").name)

        found = await self._records.read(read)
        return pb.ListCredentialsResponse(credentials=[_credential(each) for each in found])

    async def DeleteCredential(self, request: pb.DeleteCredentialRequest, call: Call) -> Empty:
        project, account, credential = parse(request.name, f"{ACCOUNT}/credentials/*")
        who, name = actor(call, project), f"projects/{project}/serviceAccounts/{account}"
        await self._records.write(lambda store: self._rules.delete_credential(store, who, name, credential))
        await self._hub.changed()
        return Empty()

    async def CreateRoleBinding(self, request: pb.CreateRoleBindingRequest, call: Call) -> pb.RoleBinding:
        who, wanted = actor(call, parse(request.parent, _PROJECT, "parent")[0]), request.role_binding
        bound = Bound(wanted.role, wanted.model_prefix, wanted.platform)
        stored = await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: _binding(self._rules.rights.bind(store, who, wanted.member, bound)),
        )
        return pb.RoleBinding.FromString(stored)

    async def ListRoleBindings(self, request: pb.ListRoleBindingsRequest, call: Call) -> pb.ListRoleBindingsResponse:
        (project,) = parse(request.parent, _PROJECT, "parent")
        size, after = page_of(request.page_size), read_token(request.page_token)
        found = await self._records.read(lambda store: store.accounts.bindings(project, request.member))
        rest = [binding for binding in found if binding.binding_id > after]
        more = write_token(rest[size - 1].binding_id) if len(rest) > size else ""
        return pb.ListRoleBindingsResponse(role_bindings=[_binding(each) for each in rest[:size]], next_page_token=more)

    async def DeleteRoleBinding(self, request: pb.DeleteRoleBindingRequest, call: Call) -> Empty:
        project, binding = parse(request.name, "projects/*/roleBindings/*")
        who = actor(call, project)
        await self._records.write(lambda store: self._rules.rights.unbind(store, who, project, binding))
        await self._hub.changed()
        return Empty()

    async def GetQuota(self, request: pb.GetQuotaRequest, call: Call) -> pb.Quota:
        found = await self._records.read(lambda store: self._rules.rights.quota(store, request.name))
        return _quota(request.name, found)

    async def UpdateAccountQuota(self, request: pb.UpdateAccountQuotaRequest, call: Call) -> pb.Quota:
        parse(request.name, ACCOUNT)
        return await self._set_quota(request.name, request.quota, call)

    async def UpdateProjectQuota(self, request: pb.UpdateProjectQuotaRequest, call: Call) -> pb.Quota:
        parse(request.name, _PROJECT)
        return await self._set_quota(request.name, request.quota, call)

    async def _set_quota(self, name: str, wanted: pb.Quota, call: Call) -> pb.Quota:
        quota = Quota(wanted.requests_per_second, wanted.bytes_per_second, wanted.concurrent_requests)
        who = actor(call, name.split("/")[1])
        return _quota(
            name, await self._records.write(lambda store: self._rules.rights.set_quota(store, who, name, quota))
        )

    async def _wanted(self, credential: pb.Credential) -> NewCredential:
        kind = credential.WhichOneof("kind")
        expires = 0.0
        if credential.HasField("expire_time"):
            expires = seconds_of(credential.expire_time, "credential.expire_time")
        if kind == "passphrase":
            # Slow on purpose: neither the event loop nor the database thread waits for it.
            hashed = await asyncio.to_thread(self._passphrases.hash, credential.passphrase)
            return NewCredential("passphrase", hashed, expires)
        if kind == "public_key_jwk":
            return NewCredential("public_key", credential.public_key_jwk, expires)
        if kind is None or credential.secret:
            raise InvalidArgument(
                "a credential is a passphrase, a public_key_jwk, or an empty secret, which auth makes",
                field="credential",
            )
        return NewCredential("secret", "", expires)


def _forget_passphrase(credential: pb.Credential) -> None:
    # What is kept of a request to recognise its repeat is a fast hash: a passphrase must not be in it.
    if credential.WhichOneof("kind") == "passphrase":
        credential.ClearField("passphrase")


def _project(project: Project) -> pb.Project:
    return pb.Project(name=f"projects/{project.project}", create_time=time_of(project.create_time))


def _account(store: Store, account: Account) -> pb.ServiceAccount:
    grants, roles = held_by(store, account)
    return pb.ServiceAccount(
        name=account.name,
        client_id=account.client_id,
        scopes=sorted(grants.scopes),
        roles=roles,
        create_time=time_of(account.create_time),
        etag=account.etag,
    )


def _credential(credential: Credential) -> pb.Credential:
    answer = pb.Credential(
        name=f"{credential.account}/credentials/{credential.credential_id}",
        create_time=time_of(credential.create_time),
    )
    if credential.expire_time:
        answer.expire_time.CopyFrom(time_of(credential.expire_time))
    if credential.kind == "public_key":
        answer.public_key_jwk = credential.value
    else:  # says which kind it is, and nothing of it
        setattr(answer, credential.kind, "")
    return answer


def _binding(binding: Binding) -> pb.RoleBinding:
    return pb.RoleBinding(
        name=f"projects/{binding.project}/roleBindings/{binding.binding_id}",
        member=binding.member,
        role=binding.role,
        model_prefix=binding.model_prefix,
        platform=binding.platform,
        create_time=time_of(binding.create_time),
    )


def _quota(name: str, quota: Quota) -> pb.Quota:
    return pb.Quota(
        name=name,
        requests_per_second=quota.requests_per_second,
        bytes_per_second=int(quota.bytes_per_second),
        concurrent_requests=quota.concurrent_requests,
    )
