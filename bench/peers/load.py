"""One client for all: `grpcload` (C++, beside this file) for gRPC, `wrk` (C) for HTTP; no Python in the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import grpc

HERE = Path(__file__).resolve().parent
#: Prints what wrk measured as one line of JSON.
_SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*all")
wrk.headers["Content-Type"] = "{content_type}"
done = function(summary, latency, requests)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("\\n{{\\"ok\\":%d,\\"errors\\":%d,\\"rps\\":%f,\\"p50_us\\":%f,\\"p99_us\\":%f}}\\n",
    summary.requests - errors.status, bad, summary.requests / summary.duration * 1e6,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one model is called and with what.

    Attributes:
        address: ``host:port``.
        path: gRPC method, or HTTP path.
        body: of every request.
        content_type: of HTTP; empty means gRPC.
        trust: root certificates of TLS; None for plaintext.
        authority: name in the server's certificate.
        metadata: sent with every call.
    """

    address: str
    path: str
    body: bytes
    content_type: str = ""
    trust: Path | None = None
    authority: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def ask(self, seconds: float) -> bytes:
        """The answer to one request.

        Raises:
            OSError, grpc.RpcError: no answer.
        """
        if self.content_type:
            request = urllib.request.Request(
                f"http://{self.address}{self.path}", self.body, {"Content-Type": self.content_type}
            )
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return bytes(answer.read())
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        if self.trust is None:
            channel = grpc.insecure_channel(self.address, options)
        else:
            options += [("grpc.ssl_target_name_override", self.authority)] if self.authority else []
            channel = grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.trust.read_bytes()), options)
        with channel:
            answer: bytes = channel.unary_unary(self.path)(
                self.body, timeout=seconds, metadata=list(self.metadata.items())
            )
            return answer


@dataclass(frozen=True, slots=True)
class Lap:
    """What one run measured: answers, failures, answers per second, microseconds."""

    ok: int
    errors: int
    rps: float
    p50_us: float
    p99_us: float
    error: str = ""


class Client:
    """Builds what it needs once; then runs it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._grpc = folder / "grpcload"
        self._http = shutil.which("wrk")

    def prepare(self) -> list[str]:
        """Build the gRPC client; says what is missing here and what it is called in Debian."""
        missing = [] if self._http else ["wrk is not installed (apt-get install wrk): servers of HTTP are left out"]
        source = HERE / "grpcload.cc"
        if self._grpc.exists() and self._grpc.stat().st_mtime > source.stat().st_mtime:
            return missing
        self._folder.mkdir(parents=True, exist_ok=True)
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", "grpc++"], capture_output=True, text=True)
        if shutil.which("g++") is None or flags.returncode != 0:
            raise SystemExit(
                "the gRPC client needs g++ and gRPC's headers: apt-get install g++ pkg-config libgrpc++-dev"
            )
        build = ["g++", "-O2", "-std=c++17", str(source), "-o", str(self._grpc), *flags.stdout.split(), "-lpthread"]
        subprocess.run(build, check=True)
        return missing

    def can(self, endpoint: Endpoint) -> bool:
        """Whether this machine has the client for it."""
        return not endpoint.content_type or self._http is not None

    def run(self, endpoint: Endpoint, concurrency: int, seconds: float) -> Lap:
        """Callers that each wait for their answer before they send again."""
        with tempfile.TemporaryDirectory() as folder:
            body = Path(folder) / "body"
            body.write_bytes(endpoint.body)
            if endpoint.content_type:
                script = Path(folder) / "post.lua"
                script.write_text(_SCRIPT.format(body=body, content_type=endpoint.content_type))
                command = [
                    str(self._http),
                    "-t1",
                    f"-c{concurrency}",
                    f"-d{max(1, round(seconds))}s",
                    "-s",
                    str(script),
                ]
                command += ["--timeout", "10s", f"http://{endpoint.address}{endpoint.path}"]
            else:
                command = [str(self._grpc), "--target", endpoint.address, "--method", endpoint.path]
                command += ["--payload", str(body), "--concurrency", str(concurrency), "--seconds", str(seconds)]
                command += ["--warmup", "0"]
                command += ["--tls", str(endpoint.trust)] if endpoint.trust else []
                command += ["--authority", endpoint.authority] if endpoint.authority else []
                for key, value in endpoint.metadata.items():
                    command += ["--metadata", f"{key}={value}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
        return _lap(done)


def _lap(done: subprocess.CompletedProcess[str]) -> Lap:
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {"error": done.stderr.strip()[-200:] or "the client printed nothing"}
    return Lap(
        found.get("ok", 0),
        found.get("errors", 0),
        found.get("rps", 0.0),
        found.get("p50_us", 0.0),
        found.get("p99_us", 0.0),
        found.get("error", ""),
    )
