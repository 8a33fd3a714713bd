"""What each served method demands, read from the contract.

The rule stands in the proto (``sealane.type.v1.access``). Health and reflection are foreign protos that
cannot carry it: their fixed table here is the only second list.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import empty_pb2, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from sealane.errors import Unimplemented
from sealane.type.v1 import access_pb2

PUBLIC = "PUBLIC"
#: Peers that a certificate alone makes known; accounts prove themselves by tokens.
_PEERS = ("auth", "inference", "node", "registry", "relay", "scheduler")
#: A path is the caller's own text: so much of it is said back and written to logs.
_MAX_PATH = 200


@dataclass(frozen=True, slots=True)
class Access:
    """The contract's ``Access``, as it is looked at on every call: reading protobuf each time costs several times more.

    Args:
        permission: scope that is demanded; ``PUBLIC`` needs no credential, empty is for peers alone.
        resource: field of the request with the resource's name.
        callers: kinds of peers that may call by certificate.
        model: path to the field with the model's name.
        narrowed: the rules look at the models that a token is limited to.
        high_risk: refused while it is not known what was revoked lately.
        proof_in_body: the body proves possession of the token's key.
    """

    permission: str
    resource: str = ""
    callers: frozenset[str] = frozenset()
    model: tuple[str, ...] = ()
    narrowed: bool = False
    high_risk: bool = False
    proof_in_body: bool = False

    @classmethod
    def of(cls, access: access_pb2.Access) -> Access:
        """What a method's option says."""
        return cls(
            permission=access.permission,
            resource=access.resource,
            callers=frozenset(access.callers),
            model=tuple(access.model.split(".")) if access.model else (),
            narrowed=access.narrowed,
            high_risk=access.risk in (access_pb2.RISK_HIGH, access_pb2.RISK_UNSPECIFIED),
            proof_in_body=access.proof_in_body,
        )


_UNSERVED = Access("UNSERVED", callers=frozenset(_PEERS))

#: Methods of foreign services that carry no option of ours.
FOREIGN: dict[str, Access] = {
    "/grpc.health.v1.Health/Check": Access(PUBLIC),
    "/grpc.health.v1.Health/Watch": Access(PUBLIC),
    "/grpc.health.v1.Health/List": Access(PUBLIC),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Access("reflect"),
}


@dataclass(frozen=True, slots=True)
class Method:
    """A served method: its path, its shapes and who may call it."""

    path: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool
    access: Access
    idempotent: bool
    served: bool = True
    public: bool = False
    """Whether it needs no credential."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]


class MissingAccess(Exception):
    """A method without a permission: the server must not start."""


def methods_of(service: ServiceDescriptor, foreign_name: str = "") -> list[Method]:
    """The methods of a service, under its own name or under the foreign one that clients call.

    Raises:
        MissingAccess: a method declares neither a permission nor callers.
    """
    name = foreign_name or service.full_name
    return [_method(descriptor, f"/{name}/{descriptor.name}") for descriptor in service.methods]


def unserved(path: str) -> Method:
    """The method that stands for a path where nothing is served: who is nobody learns no more than elsewhere.

    A public method of a foreign contract stays public: health's clients take the answer UNIMPLEMENTED for "healthy",
    and any other for an outage.
    """
    known = FOREIGN.get(path)
    access = known if known is not None and known.permission == PUBLIC else _UNSERVED
    nothing = empty_pb2.Empty
    # Streaming both ways, whatever the caller does: so nothing of what it sends needs to be read.
    return Method(
        path[:_MAX_PATH],
        nothing,
        nothing,
        True,
        True,
        access,
        idempotent=False,
        served=False,
        public=access.permission == PUBLIC,
    )


def not_served(path: str) -> Unimplemented:
    """The answer where nothing is served."""
    return Unimplemented(f"{path[:_MAX_PATH]} is not served here; check the method and the service's version")


def _method(descriptor: MethodDescriptor, path: str) -> Method:
    options = descriptor.GetOptions()
    access = FOREIGN.get(path) or Access.of(options.Extensions[access_pb2.access])
    if not access.permission and not access.callers:
        raise MissingAccess(f"{path} declares no (sealane.type.v1.access); add it to the proto")
    return Method(
        path=path,
        request=message_factory.GetMessageClass(descriptor.input_type),
        response=message_factory.GetMessageClass(descriptor.output_type),
        client_streaming=descriptor.client_streaming,
        server_streaming=descriptor.server_streaming,
        access=access,
        idempotent=options.idempotency_level in (options.IDEMPOTENT, options.NO_SIDE_EFFECTS),
        public=access.permission == PUBLIC,
    )
