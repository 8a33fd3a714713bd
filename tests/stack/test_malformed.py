"""Every method of every service, walked by its descriptors, fed with what no client would send."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from light_site import CAMERA_B, EDGE, MODEL, SERVICES, LightSite, running

import sealane.auth.v1
import sealane.inference.v1
import sealane.registry.v1
import sealane.scheduler.v1
from sealane.compat.openinference.v2 import openinference_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.protocols.foreign import FOREIGN_SERVICES
from sealane.records.paging import write_token
from sealane.rpc.channel import Target, dial
from sealane.rpc.policy import Method, methods_of
from sealane.security import tls

pytestmark = pytest.mark.stack
PACKAGES = {
    "auth": sealane.auth.v1,
    "registry": sealane.registry.v1,
    "scheduler": sealane.scheduler.v1,
    "inference": sealane.inference.v1,
}
#: A varint that never ends, a length beyond the end, a group that is not closed.
BROKEN = (b"\xff\xff\xff\xff", b"\x0a\xff\x01x", b"\x0b")
#: Texts for every string field of a request; the last one would hurt a careless SQL or path.
ODD = (
    "",
    "x",
    "projects/default",
    "projects/default/",
    "projects/default/models/../versions/1",
    f"projects/default/models/{MODEL}/versions/99999999999999999999999",
    f"projects/default/models/{MODEL}/versions/-1",
    "projects/default/deployments/\x00'; drop table deployments; --",
    write_token("9" * 30),
    write_token("²"),
)
#: What is there, for the field that names the resource while everything else is odd.
REAL = (
    "projects/default",
    f"projects/default/models/{MODEL}",
    f"projects/default/models/{MODEL}/versions/1",
    f"projects/default/models/{MODEL}/versions/1/variants/litert-int8",
    f"projects/default/models/{MODEL}/aliases/latest",
    "projects/default/deployments/spare",
)
BUGS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@dataclass(frozen=True)
class Door:
    """A method at one of the addresses that serve it."""

    place: str
    method: Method

    def knock(self, channel: grpc.Channel, body: bytes, token: str = "", seconds: float = 10.0) -> grpc.StatusCode:
        """Send one body; the code that a client sees."""
        method = self.method
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        # Else a stream of inferences answers within itself, as it should, and goes on.
        metadata = (("triton_grpc_error", "true"), *((("authorization", f"Bearer {token}"),) if token else ()))
        try:
            request = iter([body]) if method.client_streaming else body
            answer = getattr(channel, kind)(method.path)(request, timeout=seconds, metadata=metadata)
            if method.server_streaming:
                next(answer, None)
                answer.cancel()
        except grpc.RpcError as failure:
            return failure.code()
        return grpc.StatusCode.OK


def _services(package: object) -> Iterator[ServiceDescriptor]:
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_pb2"):
            yield from importlib.import_module(f"{package.__name__}.{module.name}").DESCRIPTOR.services_by_name.values()


def _doors() -> list[Door]:
    foreign = [
        openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        *tfserving_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    sealed = [item for item in _services(PACKAGES["inference"]) if item.name == "SealedInferenceService"]
    served = {name: list(_services(package)) for name, package in PACKAGES.items()}
    served["inference"] += foreign
    audit = next(service for service in served["auth"] if service.name == "AuditService")
    for name in ("registry", "scheduler"):
        served[name].append(audit)
    served[EDGE] = foreign + sealed
    doors = []
    for place, services in served.items():
        for service in (*services, health_pb2.DESCRIPTOR.services_by_name["Health"]):
            for method in methods_of(service, FOREIGN_SERVICES.get(service.full_name, "")):
                if place != EDGE or not method.server_streaming:  # a worker's front has no streams
                    doors.append(Door(place, method))
    return doors


DOORS = _doors()
BOUND = (*SERVICES, EDGE)
CLIENT_DOORS = [door for door in DOORS if door.method.access.permission]
PEER_DOORS = [door for door in DOORS if not door.method.access.permission]


def name_of(door: Door) -> str:
    return f"{door.place}{door.method.path}"


@pytest.fixture(scope="module")
def channels(site: LightSite) -> Iterator[dict[str, grpc.Channel]]:
    yield from _channels(site)


def _channels(site: LightSite) -> Iterator[dict[str, grpc.Channel]]:
    channels = {place: site.channel(place) for place in BOUND}
    yield channels
    for channel in channels.values():
        channel.close()


def token_for(site: LightSite, door: Door) -> str:
    return site.client.token(f"sealane-{'inference' if door.place == EDGE else door.place}")


def test_the_walk_sees_every_service() -> None:
    seen = {place: {door.method.path.split("/")[1] for door in DOORS if door.place == place} for place in BOUND}
    assert {place: len(services) for place, services in seen.items()} == {
        "auth": 8,
        "registry": 9,
        "scheduler": 9,
        "inference": 6,
        EDGE: 5,
    }


@pytest.mark.parametrize("door", CLIENT_DOORS, ids=name_of)
def test_broken_bodies_are_invalid_arguments(site: LightSite, channels: dict[str, grpc.Channel], door: Door) -> None:
    channel = channels[door.place]
    for body in BROKEN:
        assert door.knock(channel, body, token_for(site, door)) is grpc.StatusCode.INVALID_ARGUMENT, body


@pytest.mark.parametrize("door", [door for door in CLIENT_DOORS if not door.method.public], ids=name_of)
def test_without_a_token_no_body_is_looked_at(channels: dict[str, grpc.Channel], door: Door) -> None:
    for body in (*BROKEN, b""):
        assert door.knock(channels[door.place], body) is grpc.StatusCode.UNAUTHENTICATED, body
        assert door.knock(channels[door.place], body, "nonsense") is grpc.StatusCode.UNAUTHENTICATED, body


@pytest.mark.parametrize("door", PEER_DOORS, ids=name_of)
def test_what_is_for_peers_is_not_on_the_client_port(
    site: LightSite, channels: dict[str, grpc.Channel], door: Door
) -> None:
    assert door.knock(channels[door.place], b"") is grpc.StatusCode.UNAUTHENTICATED
    assert door.knock(channels[door.place], b"", token_for(site, door)) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("door", PEER_DOORS, ids=name_of)
def test_peers_with_broken_bodies_and_peers_that_may_not(site: LightSite, door: Door) -> None:
    folders = {"node": f"workers/{EDGE}", **{name: name for name in ("registry", "scheduler", "inference")}}
    for peer, folder in folders.items():
        identity = tls.load(site.data / folder / "identity")
        assert identity is not None
        target = Target(
            site.endpoints[f"{door.place}_mesh"],
            site.trust,
            f"{door.place}.service.sealane",
            identity.private_key,
            identity.certificate_chain,
        )
        allowed = peer in door.method.access.callers
        expected = grpc.StatusCode.INVALID_ARGUMENT if allowed else grpc.StatusCode.PERMISSION_DENIED
        with dial(target) as channel:
            for body in BROKEN:
                assert door.knock(channel, body) is expected, (peer, body)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A suite of its own, for requests that may well succeed."""
    with running(tmp_path_factory.mktemp("spoiled")) as spoiled:
        version = spoiled.push()
        spoiled.deploy_cameras(version)
        spoiled.client.deployments.create("spare", version)
        spoiled.client.deployments.wait("spare")
        yield spoiled


@pytest.fixture(scope="module")
def spoiled_channels(spoiled: LightSite) -> Iterator[dict[str, grpc.Channel]]:
    yield from _channels(spoiled)


@pytest.mark.parametrize("door", CLIENT_DOORS, ids=name_of)
def test_odd_requests_are_never_a_bug_of_ours(
    spoiled: LightSite, spoiled_channels: dict[str, grpc.Channel], door: Door
) -> None:
    resource, token = door.method.access.resource, token_for(spoiled, door)
    for name in (None, *REAL) if resource else (None, CAMERA_B):
        for text in ODD:
            for numbers in (0, -1):
                request = door.method.request()
                _fill(request, text, numbers, depth=4)
                if name is not None:
                    _aim(request, resource, name)
                code = door.knock(spoiled_channels[door.place], request.SerializeToString(), token, 3.0)
                assert code not in BUGS, (name, text, numbers)
    assert spoiled.client.inference.predict(CAMERA_B, spoiled.image)["probabilities"].shape == (1, 10)


def _aim(request: Message, resource: str, name: str) -> None:
    """Let a request be for something that is there."""
    if resource:
        setattr(request, resource, name)
    for field in ("model_name", "name", "model"):
        if not resource and field in request.DESCRIPTOR.fields_by_name:
            setattr(request, field, name)
    if "model_spec" in request.DESCRIPTOR.fields_by_name:
        request.model_spec.Clear()
        request.model_spec.name = name


def _fill(message: Message, text: str, number: int, depth: int) -> None:
    """Set every field: texts to `text`, numbers to `number` or the largest of their type where it is negative."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            if depth and not (field.message_type.GetOptions().map_entry):
                inner = getattr(message, field.name)
                _fill(inner.add() if field.is_repeated else inner, text, number, depth - 1)
            continue
        value = _value(field, text, number)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


def _value(field: FieldDescriptor, text: str, number: int) -> object:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return float("nan") if number < 0 else 0.0
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return 77 if number < 0 else 0
    wide = {FieldDescriptor.CPPTYPE_INT64: 2**63 - 1, FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1}
    unsigned = 2**32 - 1 if field.cpp_type == FieldDescriptor.CPPTYPE_UINT32 else 2**31 - 1
    return wide.get(field.cpp_type, unsigned) if number < 0 else 0
