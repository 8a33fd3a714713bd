"""An S3 server in a process of its own, and a proxy before it that fails as networks and servers do."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from obstore.store import ObjectStore

from sealane_registry.blob_objects import Access, open_store

MOTO = Path(__file__).parents[3] / ".venv-moto" / "bin" / "moto_server"
CREDENTIALS = "aws_access_key_id=test\naws_secret_access_key=test\naws_region=us-east-1\n"


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a fresh server, ``http://127.0.0.1:port``."""
    process = subprocess.Popen(
        [MOTO, "-H", "127.0.0.1", "-p", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    reader = threading.Thread(target=process.stderr.read, daemon=True)  # an unread pipe would stop it
    try:
        address = ""
        while not address:
            line = process.stderr.readline()
            assert line, "moto_server ended"
            found = re.search(r"Running on (http://[\d.]+:\d+)", line)
            address = found.group(1) if found else ""
        reader.start()
        yield address
    finally:
        process.terminate()
        process.wait()
        if reader.ident is not None:
            reader.join()
        process.stderr.close()


def new_bucket(address: str) -> str:
    """The URL of a fresh bucket with a prefix."""
    name = f"b{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT")).close()
    return f"s3://{name}/some/prefix"


def reach(url: str, address: str, folder: Path, *, timeout: float = 10.0, retries: int = 1) -> ObjectStore:
    """obstore's store at an address."""
    credentials = folder / "credentials"
    credentials.write_text(CREDENTIALS)
    return open_store(Access(url, address, credentials, allow_http=True, timeout=timeout, retries=retries))


#: What is done to a request (method, path): "" nothing, or see :class:`FaultyProxy`.
Rule = Callable[[str, str], str]


class FaultyProxy:
    """Passes HTTP on; `rule` says what goes wrong.

    ``status:N`` answers N without asking; ``cut request`` reads half of the body and hangs up; ``cut answer`` sends
    half of the answer's body and hangs up; ``lost answer`` has it done and hangs up; ``slow:S`` waits S seconds.
    """

    def __init__(self, address: str) -> None:
        self.rule: Rule = lambda method, path: ""
        self.hits = 0
        proxy, upstream = self, address.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def do(self) -> None:
                fault = proxy.rule(self.command, self.path)
                proxy.hits += bool(fault)
                length = int(self.headers.get("content-length") or 0)
                if fault == "cut request":
                    self.rfile.read(length // 2)
                    self.hang_up()
                    return
                body = self.rfile.read(length)
                if fault.startswith("status:"):
                    self.answer(int(fault.partition(":")[2]), {}, b"<Error><Code>Fault</Code></Error>", False)
                    return
                if fault.startswith("slow:"):
                    time.sleep(float(fault.partition(":")[2]))
                ahead = http.client.HTTPConnection(upstream, timeout=30)
                ahead.request(self.command, self.path, body, dict(self.headers))
                answer = ahead.getresponse()
                content = answer.read()
                ahead.close()
                if fault == "lost answer":
                    self.hang_up()
                    return
                self.answer(answer.status, dict(answer.headers), content, fault == "cut answer")

            def answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool) -> None:
                self.send_response_only(status)
                size = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else len(content)
                skipped = {"content-length", "transfer-encoding", "connection"}
                for name, value in headers.items():
                    if name.lower() not in skipped:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if cut else content)
                if cut:
                    self.hang_up()

            def hang_up(self) -> None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
