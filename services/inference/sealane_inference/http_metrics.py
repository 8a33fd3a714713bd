"""The listener for scrapers: the gateway's counts at the paths that they know, and nothing else."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from sealane.errors import FailedPrecondition
from sealane.rpc.call_metrics import CallMetrics
from sealane_inference.http_coding import Receive
from sealane_inference.http_scope import Scope, Send
from sealane_inference.metrics_text import MEDIA_TYPE, page
from sealane_inference.present import Present

#: Where scrapers of Triton and of TensorFlow Serving look.
PATHS = frozenset({"/metrics", "/monitoring/prometheus/metrics"})
_MIN_TOKEN = 16


class MetricsFace:
    """The application, in the form of ASGI.

    Args:
        metrics: what was counted.
        present: the routes, whose models are told.
        token: what a scraper must send as its bearer token; empty for a listener on loopback.
    """

    def __init__(self, metrics: CallMetrics, present: Present, token: str) -> None:
        self._metrics = metrics
        self._present = present
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one scrape."""
        if scope["type"] != "http":
            return
        status, body = 200, b""
        if scope["path"] not in PATHS or scope["method"] not in ("GET", "HEAD"):
            status = 404
        elif self._token and not self._admitted(scope):
            status = 401
        else:
            body = page(self._metrics, self._present.models())
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _admitted(self, scope: Scope) -> bool:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])  # type: ignore[call-overload]  # pairs, says ASGI
        return hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + self._token)


def token_of(address: str, file: Path | None) -> str:
    """The token that scrapers at `address` must send.

    Raises:
        FailedPrecondition: none, though others than this machine can reach the address; or one that can be guessed.
    """
    token = file.read_text().strip() if file is not None else ""
    if file is not None and len(token) < _MIN_TOKEN:
        raise FailedPrecondition(f"{file} holds less than {_MIN_TOKEN} characters; put a random token into it")
    if not token and not _on_loopback(address):
        raise FailedPrecondition(
            f"others can reach {address}, and the metrics name the models of all projects; "
            "set SEALANE_INFERENCE_METRICS_TOKEN_FILE, or listen on 127.0.0.1"
        )
    return token


def _on_loopback(address: str) -> bool:
    name = address.rpartition(":")[0].strip("[]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
