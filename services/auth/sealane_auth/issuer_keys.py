"""Fetches the key sets of external issuers over HTTPS, and keeps them.

The addresses come from administrators of projects, so they are not trusted: https alone, no redirects, no proxies, no
private addresses (the address that is checked is the one that is connected to), bounded in time and size.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sealane.clock import Clock
from sealane.errors import InvalidArgument, SealaneError, Unauthenticated, Unavailable
from sealane.security import external_jwt, jws
from sealane.security.external_jwt import ExternalKey
from sealane_auth.federation import check_url, inline_keys
from sealane_auth.issuer_store import TrustedIssuer

CACHE_SECONDS = 300.0
#: A token with an unknown key makes auth ask again so often at most.
REFETCH_SECONDS = 10.0
#: For so long the last good set serves while the issuer is down.
KEEP_SECONDS = 86_400.0
FETCH_SECONDS = 5.0
MAX_BYTES = 262_144
_CACHED_ISSUERS = 1000


@dataclass(slots=True)
class _Entry:
    keys: tuple[ExternalKey, ...] = ()
    fetched: float = float("-inf")
    tried: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)


class IssuerKeys:
    """Key sets by trust. Blocks while it fetches: not for the event loop, nor for the database thread.

    Args:
        clock: the time.
        ca_file: root certificates, PEM; None for the system's.
        private: whether loopback and private addresses may be asked.
    """

    def __init__(self, clock: Clock, *, ca_file: Path | None = None, private: bool = False) -> None:
        self._clock = clock
        self._ca_file = ca_file
        self._private = private
        self._entries: OrderedDict[tuple[str, str, str], _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, trusted: TrustedIssuer, *, unknown_key: bool = False) -> tuple[ExternalKey, ...]:
        """The keys of an issuer; `unknown_key` where those that are kept did not do.

        Raises:
            Unavailable: the issuer cannot be asked, and there is no set that is young enough.
        """
        if trusted.jwks:
            return inline_keys(trusted)
        key = (trusted.name, trusted.issuer, trusted.jwks_uri)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            if len(self._entries) > _CACHED_ISSUERS:
                self._entries.popitem(last=False)
        with entry.lock:  # those that want the same set wait for one fetch
            now = self._clock.monotonic()
            if now - entry.fetched < (REFETCH_SECONDS if unknown_key else CACHE_SECONDS):
                return entry.keys
            if now - entry.tried >= REFETCH_SECONDS:
                entry.tried = now
                try:
                    entry.keys, entry.fetched = self._fetch(trusted), now
                except SealaneError:
                    if now - entry.fetched > KEEP_SECONDS:
                        raise
            if now - entry.fetched > KEEP_SECONDS:
                raise Unavailable("the issuer's keys could not be fetched; try again", retry_after=REFETCH_SECONDS)
            return entry.keys

    def _fetch(self, trusted: TrustedIssuer) -> tuple[ExternalKey, ...]:
        """The key set from where the trust, or the issuer's discovery document, says (OpenID Connect Discovery 4)."""
        deadline = time.monotonic() + FETCH_SECONDS
        try:
            address = trusted.jwks_uri
            if not address:
                document = self._get(f"{trusted.issuer.rstrip('/')}/.well-known/openid-configuration", deadline)
                facts = jws.strict_object(document)
                if facts.get("issuer") != trusted.issuer:  # section 4.3: else any host could speak for it
                    raise _unavailable("its discovery document is of another issuer")
                address = str(facts.get("jwks_uri"))
                check_url(address, "jwks_uri")
            keys = external_jwt.parse_key_set(self._get(address, deadline))
        except (InvalidArgument, Unauthenticated) as error:
            raise _unavailable(error.message) from error
        if not keys:
            raise _unavailable("its key set holds no key that verifies signatures")
        return keys

    def _get(self, url: str, deadline: float) -> bytes:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        context = ssl.create_default_context(cafile=self._ca_file)
        connection = http.client.HTTPSConnection(host, port, context=context)
        try:
            with self._connect(host, port, deadline) as plain, _ended_at(deadline, plain):
                connection.sock = context.wrap_socket(plain, server_hostname=host)
                connection.request("GET", parts.path or "/", headers={"accept": "application/json"})
                return _body(connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            raise _unavailable("it cannot be reached, or is too slow") from error
        finally:
            connection.close()

    def _connect(self, host: str, port: int, deadline: float) -> socket.socket:
        """A connection to an address that was looked at: a name cannot mean another one a moment later."""
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _unavailable("its name cannot be resolved") from error
        for _, _, _, _, address in addresses:
            found = ipaddress.ip_address(str(address[0]).partition("%")[0])
            mapped = getattr(found, "ipv4_mapped", None)
            if self._private or ((mapped or found).is_global and not found.is_multicast):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                return socket.create_connection((str(address[0]), port), timeout=left)
        raise _unavailable("its address is not public, or it took too long")


def _body(response: http.client.HTTPResponse) -> bytes:
    if response.status != 200:  # a redirect is no answer either
        raise _unavailable(f"it answered with status {response.status}")
    body = response.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise _unavailable("its answer is too large")
    return body


@contextlib.contextmanager
def _ended_at(deadline: float, connection: socket.socket) -> Iterator[None]:
    """Ends a connection at a time: a socket's own timeout is one of each read, and some send byte by byte."""
    with connection.dup() as twin:

        def end() -> None:
            with contextlib.suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(max(0.0, deadline - time.monotonic()), end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _unavailable(why: str) -> Unavailable:
    return Unavailable(f"the issuer's keys could not be fetched: {why}", reason="ISSUER_UNREACHABLE", retry_after=10.0)
