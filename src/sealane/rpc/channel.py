"""Outgoing channels: TLS always, and on every call a deadline, a request id, the trace and a credential.

A call is retried only where its contract declares it safe (idempotency level), only on UNAVAILABLE, and
only inside its deadline. Errors arrive as :mod:`sealane.errors`.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from sealane import telemetry
from sealane.errors import NOT_LEADER, SealaneError, Unauthenticated, Unavailable
from sealane.rpc import limits
from sealane.rpc.failover import FailoverChannel, Turn
from sealane.rpc.status import from_rpc_error

DEFAULT_SECONDS = 30.0
_FIRST_BACKOFF = 0.05
_LAST_BACKOFF = 1.0

T = TypeVar("T")


class Credentials(Protocol):
    """Something that authenticates calls."""

    def metadata(self, method_path: str) -> Mapping[str, str]:
        """Metadata to send with one call of `method_path`."""
        ...

    def refused(self, failure: SealaneError) -> bool:
        """The other end did not take what was sent; whether it may take what is sent next."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where to dial and whom to expect there.

    Args:
        address: ``host:port``; several with commas between them, of which one serves (:mod:`sealane.rpc.failover`).
        trust_bundle: root certificates, PEM.
        tls_name: name to expect in the certificate; empty expects the address's own host.
        private_key: PEM, with `certificate_chain`, for the mesh port.
        certificate_chain: PEM, leaf first.
        turn: which of several addresses is called, where the next channel is to know what this one found out.
    """

    address: str
    trust_bundle: bytes
    tls_name: str = ""
    private_key: bytes | None = None
    certificate_chain: bytes | None = None
    turn: Turn | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """One or several."""
        return tuple(address.strip() for address in self.address.split(",") if address.strip())


def dial(target: Target) -> grpc.Channel:
    """A bare TLS channel, for callers that do everything else themselves."""
    credentials = grpc.ssl_channel_credentials(target.trust_bundle, target.private_key, target.certificate_chain)
    several = len(target.addresses) > 1
    options = limits.channel(one_of_several=several)
    if target.tls_name:
        options.append(("grpc.ssl_target_name_override", target.tls_name))
    if not several:
        return grpc.secure_channel(target.address, credentials, options=options)
    channels = [grpc.secure_channel(address, credentials, options=options) for address in target.addresses]
    return FailoverChannel(channels, target.turn)


def connect(target: Target, credentials: Credentials | None = None) -> grpc.Channel:
    """A channel for generated stubs, with everything in the module's docstring on every call."""
    return grpc.intercept_channel(dial(target), _Interceptor(credentials))


@dataclass(frozen=True, slots=True)
class _Details(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Interceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials

    def _details(self, details: grpc.ClientCallDetails, timeout: float | None) -> _Details:
        metadata = list(details.metadata or ())
        present = {key for key, _ in metadata}
        extra = {"x-request-id": str(uuid.uuid4()), "traceparent": telemetry.current()}
        if self._credentials is not None:
            extra.update(self._credentials.metadata(_text(details.method)))
        metadata.extend((key, value) for key, value in extra.items() if value and key not in present)
        return _Details(_text(details.method), timeout, tuple(metadata), None, details.wait_for_ready, None)

    def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
        """One request, one answer; retried where that is safe."""
        deadline = time.monotonic() + (details.timeout or DEFAULT_SECONDS)
        safe = _idempotent(request, _text(details.method))

        def attempt() -> grpc.Call:
            outcome = continuation(self._details(details, max(0.0, deadline - time.monotonic())), request)
            outcome.result()
            return outcome  # type: ignore[no-any-return]

        try:
            return retrying(attempt, deadline=deadline, safe=safe)
        except Unauthenticated as failure:  # it did not run, so every method may be called again
            if self._credentials is None or not self._credentials.refused(failure):
                raise
            return retrying(attempt, deadline=deadline, safe=safe)

    def intercept_stream_unary(self, continuation, details, requests):  # type: ignore[no-untyped-def]
        """Many requests, one answer; never retried."""
        try:
            outcome = continuation(self._details(details, details.timeout), requests)
            outcome.result()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return outcome

    def intercept_unary_stream(self, continuation, details, request):  # type: ignore[no-untyped-def]
        """One request, many answers."""
        return Stream(continuation(self._details(details, details.timeout), request))

    def intercept_stream_stream(self, continuation, details, requests):  # type: ignore[no-untyped-def]
        """Many requests, many answers."""
        return Stream(continuation(self._details(details, details.timeout), requests))


class Stream(Iterator[T]):
    """Answers of a stream; failures come as our errors."""

    def __init__(self, call: grpc.Call) -> None:
        self._call = call

    def __next__(self) -> T:
        """The next answer."""
        try:
            return next(self._call)  # type: ignore[call-overload, no-any-return]  # a call iterates
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def cancel(self) -> None:
        """End the stream from this side."""
        self._call.cancel()


def retrying(attempt: Callable[[], T], *, deadline: float, safe: bool) -> T:
    """Run `attempt`, again with full jitter while it is UNAVAILABLE, `safe`, and there is time.

    What a process refused because another leads did not run, so it is safe whatever it is.
    """
    backoff = _FIRST_BACKOFF
    while True:
        try:
            return attempt()
        except (grpc.RpcError, SealaneError) as error:
            failure = error if isinstance(error, SealaneError) else from_rpc_error(error)
            pause = max(random.uniform(0, backoff), failure.retry_after or 0.0)
            may_repeat = isinstance(failure, Unavailable) and (safe or failure.reason == NOT_LEADER)
            if not may_repeat or time.monotonic() + pause >= deadline:
                raise failure from error
            time.sleep(pause)
            backoff = min(backoff * 2, _LAST_BACKOFF)


def _idempotent(request: object, path: str) -> bool:
    service, _, name = path.lstrip("/").partition("/")
    descriptor = getattr(request, "DESCRIPTOR", None)
    if descriptor is None:
        return False
    try:
        method = descriptor.file.pool.FindServiceByName(service).FindMethodByName(name)
    except KeyError:
        return False
    options = method.GetOptions()
    return options.idempotency_level in (options.IDEMPOTENT, options.NO_SIDE_EFFECTS)


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
