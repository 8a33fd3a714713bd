"""Every method of every contract says who may call it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

import sealane
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.middleware import Chain
from sealane.rpc.policy import PUBLIC, MissingAccess
from sealane.security.permissions import MODEL_PERMISSIONS, PERMISSIONS
from sealane.type.v1 import access_pb2

PEERS = {"auth", "registry", "scheduler", "inference", "node", "relay", "account"}


def all_methods() -> list[MethodDescriptor]:
    methods = []
    for module in pkgutil.walk_packages(sealane.__path__, "sealane."):
        if module.name.endswith("_pb2") and "protobuf" not in module.name:
            file = importlib.import_module(module.name).DESCRIPTOR
            methods += [method for service in file.services_by_name.values() for method in service.methods]
    return methods


METHODS = {method.full_name: method for method in all_methods()}


def access(method: MethodDescriptor) -> access_pb2.Access:
    return method.GetOptions().Extensions[access_pb2.access]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_declares_access_risk_and_idempotency(name: str) -> None:
    rule, options = access(METHODS[name]), METHODS[name].GetOptions()
    assert rule.permission or rule.callers
    assert rule.risk != access_pb2.RISK_UNSPECIFIED
    assert set(rule.callers) <= PEERS
    assert options.HasField("idempotency_level")
    if rule.resource:
        assert rule.resource in METHODS[name].input_type.fields_by_name


def test_the_public_methods_are_these_and_no_others() -> None:
    public = {name for name, method in METHODS.items() if access(method).permission == PUBLIC}
    assert public == {
        "sealane.auth.v1.TokenService.IssueToken",
        "sealane.auth.v1.TokenService.GetJsonWebKeySet",
        "sealane.auth.v1.TokenService.ExchangeToken",
        "sealane.auth.v1.TokenService.RevokeToken",
        "sealane.auth.v1.EnrollmentService.Enroll",
        "sealane.auth.v1.EnrollmentService.Reenroll",
        "sealane.compat.openinference.v2.GRPCInferenceService.ServerLive",
        "sealane.compat.openinference.v2.GRPCInferenceService.ServerReady",
    }


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_permission_exists_and_says_how_it_is_limited_to_models(name: str) -> None:
    rule, message = access(METHODS[name]), METHODS[name].input_type
    assert rule.permission in PERMISSIONS | {PUBLIC, ""}
    if rule.model:
        *outer, last = rule.model.split(".")
        for part in outer:
            message = message.fields_by_name[part].message_type
        assert message.fields_by_name[last].type == FieldDescriptor.TYPE_STRING
    if rule.permission in MODEL_PERMISSIONS and not rule.model and not rule.narrowed:
        # What is left names a model, or something below one, in its resource.
        assert rule.resource in ("name", "parent")
        comment = f"{METHODS[name].containing_service.name}.{METHODS[name].name}"
        assert comment.startswith(("ModelService.", "VariantService.", "SignatureService."))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_that_creates_takes_a_request_id(name: str) -> None:
    method = METHODS[name]
    once = {"CreateJoinToken"}  # its answer is a secret that must not be stored
    if method.name.startswith("Create") and method.name not in once:
        assert "request_id" in method.input_type.fields_by_name
    if method.name.startswith("List"):
        assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
        assert "next_page_token" in method.output_type.fields_by_name


def test_a_service_without_a_rule_does_not_start() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="naked.proto", package="naked", syntax="proto3")
    file.message_type.add(name="Nothing")
    file.service.add(name="Naked").method.add(name="Do", input_type=".naked.Nothing", output_type=".naked.Nothing")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)

    class Servicer:
        def Do(self) -> None:
            """Never reached."""

    with pytest.raises(MissingAccess, match=r"/naked\.Naked/Do"):
        Dispatcher([Served(Servicer(), pool.FindServiceByName("naked.Naked"))], Chain([]))
