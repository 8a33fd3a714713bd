"""The listener for scrapers: the gateway's counts at the paths that they know, and nothing else."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from sealane.rpc.call_metrics import CallMetrics
from sealane.rpc.metrics_page import MEDIA_TYPE, PATHS
from sealane_inference.http_inflow import Receive
from sealane_inference.http_scope import Scope, Send, connection_of
from sealane_inference.metrics_text import page
from sealane_inference.present import Present


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
            connection_of(scope).known = True
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def close(self) -> None:
        """There is nothing to end."""

    def _admitted(self, scope: Scope) -> bool:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])  # type: ignore[call-overload]  # pairs, says ASGI
        return hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + self._token)
