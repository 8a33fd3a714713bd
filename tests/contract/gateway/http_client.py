"""A plain HTTPS client of the gateway's HTTP face."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from gateway_harness import TLS_NAME, Gateway


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


class HttpClient:
    """Calls with a good token unless `token` says otherwise."""

    def __init__(self, gateway: Gateway, port: str = "http") -> None:
        self.gateway = gateway
        self.base = f"https://127.0.0.1:{gateway.ports[port]}"
        self._pool = urllib3.PoolManager(
            ca_certs=str(gateway.ca_file),
            assert_hostname=TLS_NAME,
            server_hostname=TLS_NAME,
            retries=False,
            timeout=20,
        )

    def get(self, path: str, **options: Any) -> Answered:
        return self.call("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> Answered:
        return self.call("POST", path, body, **options)

    def call(self, verb: str, path: str, body: object = None, *, token: str | None = None, **headers: str) -> Answered:
        with self._send(verb, path, body, token, headers) as response:
            data = response.read(decode_content=False)
            return Answered(response.status, {key.lower(): value for key, value in response.headers.items()}, data)

    def events(self, path: str, body: object, *, token: str | None = None) -> Iterator[Any]:
        """The JSON of each event."""
        response = self._send("POST", path, body, token, {})
        assert response.status == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        rest = b""
        for chunk in response.stream(1024):
            *whole, rest = (rest + chunk).split(b"\n\n")
            for event in whole:
                assert event.startswith(b"data: ")
                yield json.loads(event[6:])
        assert not rest
        response.release_conn()

    def _send(self, verb: str, path: str, body: object, token: str | None, headers: dict[str, str]) -> Any:
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        if token is None:
            token = f"Bearer {self.gateway.authority.token()}"
        if token:
            sent["authorization"] = token
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        return self._pool.request(verb, self.base + path, body=data, headers=sent, preload_content=False)

    def close(self) -> None:
        self._pool.clear()
