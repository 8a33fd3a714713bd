"""perf_analyzer, unmodified: Triton's load generator, out of the wheel of tritonclient 2.48.0.

It drops headers of gRPC, so at the gateway's mesh port it shows the certificate of an account; over HTTP it sends the
token. For TensorFlow Serving it speaks no TLS, and a worker wants a token: there a proxy on loopback adds both.

Usage: perf_analyzer.py SITE.json KIND row...; KIND is grpc, http or tfserving; PERF_ANALYZER is the program.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from calling import Site, run

_BRIEF = "--request-count 30 -s 999 --concurrency-range 2:2"
#: It compares the outputs with these; it wants every number with a point.
_PAIR = {
    "data": [{"a": [1.0, 2.0, 3.0, 4.0], "b": [10.0, 0.5, 2.0, 1.0]}],
    "validation_data": [{"total": [11.0, 2.5, 5.0, 5.0], "product": [10.0, 1.0, 6.0, 4.0]}],
}
ROWS = {}


class _Forward(grpc.GenericRpcHandler):
    """Every call goes on, with the token."""

    def __init__(self, channel: grpc.Channel, headers: tuple[tuple[str, str], ...]) -> None:
        self._channel, self._headers = channel, headers

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def forward(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            call = self._channel.stream_stream(details.method)(requests, metadata=self._headers, timeout=60)
            try:
                yield from call
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.stream_stream_rpc_method_handler(forward)


class Client:
    """Runs it against a site."""

    def __init__(self, site: Site, kind: str, token: str = "good") -> None:
        self.site, self.kind, self._token = site, kind, token

    def run(self, model: str, *more: str, data: dict | None = None, refused: bool = False) -> str:
        """What it prints; it fails where a request fails or an answer is not what `data` says."""
        with tempfile.TemporaryDirectory() as folder, self._way() as way:
            command = [os.environ["PERF_ANALYZER"], "-m", model, *way, *_BRIEF.split(), *more]
            if data is not None:
                file = Path(folder) / "data.json"
                file.write_text(json.dumps(data))
                command += ["--input-data", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        told = done.stdout + done.stderr
        if (done.returncode != 0) != refused:
            raise AssertionError(f"exit status {done.returncode}: {told.strip()[-420:]}")
        return told

    @contextmanager
    def _way(self) -> Iterator[list[str]]:
        """The arguments that say where and as whom."""
        site = self.site
        if self.kind == "http":
            at = ["-i", "http", "-u", f"https://{site.http}", "--ssl-https-ca-certificates-file", site.ca]
            told = [f"{name}: {value}" for name, value in site.authorization(self._token).items()]
            yield [*at, *(item for header in told for item in ("-H", header))]
        elif self.kind == "grpc" and site.mesh:
            own = Path(site.certificate)
            tls = {
                "root-certifications": site.ca,
                "private-key": own / "key.pem",
                "certificate-chain": own / "chain.pem",
            }
            files = [item for name, file in tls.items() for item in (f"--ssl-grpc-{name}-file", str(file))]
            yield ["-i", "grpc", "-u", site.mesh, "--ssl-grpc-use-ssl", "true", *files]
        else:
            with _proxy(site) as address:
                kind = ["--service-kind", "tfserving"] if self.kind == "tfserving" else []
                yield ["-i", "grpc", "-u", address, *kind]


@contextmanager
def _proxy(site: Site) -> Iterator[str]:
    options = [
        ("grpc.ssl_target_name_override", site.tls_name),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    channel = grpc.secure_channel(site.grpc, grpc.ssl_channel_credentials(site.trust), options=options)
    server = grpc.server(ThreadPoolExecutor(8), options=options[1:])
    server.add_generic_rpc_handlers((_Forward(channel, tuple(site.authorization("good").items())),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
        channel.close()


def _measured(told: str) -> None:
    """It measured answers, and none failed."""
    count = re.search(r"Request count: (\d+)", told)
    if count is None or int(count[1]) < 20:
        raise AssertionError(f"no requests were measured: {told[-500:]}")


def _infer(client: Client) -> None:
    _measured(client.run("pair", data=_PAIR))
    wrong = json.loads(json.dumps(_PAIR).replace("11.0", "99.0"))
    client.run("pair", data=wrong, refused=True)


def _typed(client: Client) -> None:
    formats = ["--input-tensor-format", "json", "--output-tensor-format", "json"]
    _measured(client.run("pair", *formats, data=_PAIR))


def _compressed(client: Client, coding: str) -> None:
    _measured(client.run("pair", "--grpc-compression-algorithm", coding, data=_PAIR))


def _refused(client: Client, model: str, text: str, *more: str) -> None:
    told = client.run(model, *more, refused=True)
    if text not in told:
        raise AssertionError(told[-500:])


ROWS["infer"] = _infer
ROWS["infer_typed"] = _typed
ROWS["infer_streamed"] = lambda client: _measured(client.run("pair", "--streaming", data=_PAIR))
ROWS["sequence"] = lambda client: _measured(client.run("counter", "--sequence-length", "5", "--shape", "x:1"))
ROWS["ensemble"] = lambda client: _measured(client.run("chain", "--shape", "left:1,4", "--shape", "right:1,4"))
ROWS["version_number"] = lambda client: _measured(client.run("pair", "-x", "1", data=_PAIR))
ROWS["large"] = lambda client: _measured(client.run("pixels", "-b", "8"))
ROWS["compression_gzip"] = lambda client: _compressed(client, "gzip")
ROWS["compression_deflate"] = lambda client: _compressed(client, "deflate")
ROWS["unknown_model"] = lambda client: _refused(client, "nobody", "nobody")
ROWS["unknown_version"] = lambda client: _refused(client, "pair", "version 7", "-x", "7")
ROWS["no_token"] = lambda client: _refused(Client(client.site, client.kind, "none"), "pair", "token")
ROWS["bad_token"] = lambda client: _refused(Client(client.site, client.kind, "bad"), "pair", "token")
#: The service kind tfserving compares no outputs.
_SHAPES = ("--model-signature-name", "serving_default", "--shape", "a:1,4", "--shape", "b:1,4")
ROWS["predict_values"] = lambda client: _measured(client.run("pair", *_SHAPES))


if __name__ == "__main__":
    kind = sys.argv.pop(2)
    sys.exit(run(ROWS, lambda site: Client(site, kind)))
