"""From a join token to a certificate, to the next one, and to a channel that shows it."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from sealane.auth.v1 import enrollment_service_pb2 as pb
from sealane.auth.v1 import enrollment_service_pb2_grpc, token_service_pb2, token_service_pb2_grpc
from sealane.errors import FailedPrecondition, PermissionDenied, Unauthenticated
from sealane.rpc.channel import Target, connect
from sealane.rpc.failover import Turn
from sealane.security import device, tls
from sealane.security.keys import CACHE_SECONDS, Published

log = logging.getLogger("sealane.enroll")

AUTH_TLS_NAME = "auth.service.sealane"
_ENROLL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class EnrollConfig:
    """How a service or a worker gets its certificate.

    Args:
        directory: where key and certificate lie.
        auth: client port of auth, ``host:port``.
        auth_mesh: mesh port of auth, for renewals.
        trust_bundle: file with the root certificates, handed over out of band.
        join_token: file with the join token; needed before the first start only.
    """

    directory: Path
    auth: str
    auth_mesh: str
    trust_bundle: Path
    join_token: Path | None = None


def ensure(config: EnrollConfig) -> tls.PeerIdentity:
    """The identity of this process: the stored one while it is valid, else a new one by device key or join token.

    Raises:
        FailedPrecondition: no valid certificate, no device key that auth takes, and no join token.
        SealaneError: auth refused, or could not be reached for a minute.
    """
    present = tls.load(config.directory)
    if present is not None and not present.expired(_now()) and present.fits():
        return present
    if present is not None:
        try:
            return reenroll(config, present)
        except (PermissionDenied, Unauthenticated) as error:
            log.warning("the device key was refused, trying the join token", extra={"reason": error.reason})
    if config.join_token is None or not config.join_token.exists():
        raise FailedPrecondition(
            f"no valid certificate in {config.directory} and no join token; create one with "
            "'sealane nodes join-token' and name its file in SEALANE_JOIN_TOKEN"
        )
    private_key, request = tls.new_request()
    message = pb.EnrollRequest(
        join_token=config.join_token.read_text().strip(),
        certificate_request=request,
        device_proof=device.prove(device.ensure_key(config.directory), request, time.time()),
    )
    with connect(Target(config.auth, config.trust_bundle.read_bytes(), AUTH_TLS_NAME)) as channel:
        stub = enrollment_service_pb2_grpc.EnrollmentServiceStub(channel)
        answer = stub.Enroll(message, timeout=_ENROLL_SECONDS, wait_for_ready=True)
    return tls.store(config.directory, private_key, _issued(answer))


def reenroll(config: EnrollConfig, identity: tls.PeerIdentity) -> tls.PeerIdentity:
    """A new certificate by the device key: the one before has expired, or its issuer is no longer trusted.

    Raises:
        PermissionDenied: the device was evicted.
        Unauthenticated: auth does not know the device key.
        SealaneError: auth could not be reached for a minute.
    """
    private_key, request = tls.new_request()
    message = pb.ReenrollRequest(
        spiffe_id=identity.spiffe_id,
        certificate_request=request,
        device_proof=device.prove(device.ensure_key(config.directory), request, time.time()),
    )
    with connect(Target(config.auth, config.trust_bundle.read_bytes(), AUTH_TLS_NAME)) as channel:
        stub = enrollment_service_pb2_grpc.EnrollmentServiceStub(channel)
        answer = stub.Reenroll(message, timeout=_ENROLL_SECONDS, wait_for_ready=True)
    return tls.store(config.directory, private_key, _issued(answer))


def renew(config: EnrollConfig, identity: tls.PeerIdentity) -> None:
    """A new certificate for the one that is still good, with a new key."""
    private_key, request = tls.new_request()
    with connect(mesh_target(identity, "auth", config.auth_mesh)) as channel:
        stub = enrollment_service_pb2_grpc.EnrollmentServiceStub(channel)
        proof = device.prove(device.ensure_key(config.directory), request, time.time())
        message = pb.RenewCertificateRequest(certificate_request=request, device_proof=proof)
        answer = stub.RenewCertificate(message, timeout=10.0)
    tls.store(identity.directory, private_key, _issued(answer))


def mesh_target(identity: tls.PeerIdentity, service: str, address: str, turn: Turn | None = None) -> Target:
    """The mesh port of a service, dialled with this process's certificate.

    Args:
        identity: of this process.
        service: whom to expect there.
        address: ``host:port``; several with commas between them.
        turn: which of several is called, for who dials again and again.
    """
    return Target(address, identity.trust_bundle, f"{service}.service.sealane", *identity.pair(), turn)


class MeshChannel:
    """A channel to a service's mesh port that is dialled anew once this process's certificate was renewed."""

    def __init__(self, identity: tls.PeerIdentity, service: str, address: str) -> None:
        self._identity = identity
        self._service = service
        self._address = address
        self._chain = b""
        self._channel: grpc.Channel | None = None
        self._turn = Turn()
        self._lock = threading.Lock()

    def __call__(self) -> grpc.Channel:
        """The channel to use for the next call. Calls on an older one go on; it is closed when they are done."""
        with self._lock:
            chain = self._identity.certificate_chain
            if self._channel is None or chain != self._chain:
                self._chain = chain
                self._channel = connect(mesh_target(self._identity, self._service, self._address, self._turn))
            return self._channel

    def close(self) -> None:
        """End the calls that are under way, and those that would be tried again."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()


def fetch_keys(channel: Callable[[], grpc.Channel]) -> Callable[[], Published]:
    """A function that gets auth's public keys, for :class:`sealane.security.keys.KeySet`."""

    def fetch() -> Published:
        stub = token_service_pb2_grpc.TokenServiceStub(channel())
        answer = stub.GetJsonWebKeySet(token_service_pb2.GetJsonWebKeySetRequest(), timeout=2.0)
        return Published({key.kid: key.x for key in answer.keys}, float(answer.max_age_seconds) or CACHE_SECONDS)

    return fetch


def _issued(answer: pb.EnrollResponse) -> tls.Issued:
    names = ("tier", "zone", "region", "pool", "clearance", "relay")
    attributes = {name: getattr(answer.attributes, name) for name in names} if answer.HasField("attributes") else {}
    return tls.Issued(answer.certificate_chain, answer.trust_bundle, answer.spiffe_id, attributes)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
