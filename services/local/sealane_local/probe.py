"""Asks a service whether it serves, over TLS: the health check of containers.

``python -m sealane_local.probe HOST:PORT CA_FILE TLS_NAME`` exits 0 where the answer is SERVING.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 4.0


def serving(address: str, roots: bytes, tls_name: str) -> bool:
    """Whether a peer that can prove to be `tls_name` says SERVING."""
    options = [("grpc.ssl_target_name_override", tls_name)]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(roots), options=options) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=SECONDS, wait_for_ready=True
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main(arguments: list[str]) -> int:
    """Exit code: 0 serving, 1 not serving, 2 wrong use."""
    if len(arguments) != 3:
        print("error: use python -m sealane_local.probe HOST:PORT CA_FILE TLS_NAME", file=sys.stderr)
        return 2
    address, ca_file, tls_name = arguments
    try:
        roots = Path(ca_file).read_bytes()
    except OSError as error:
        print(f"error: {ca_file} cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    if serving(address, roots, tls_name):
        return 0
    print(f"error: {tls_name} does not serve at {address}; see the log of its container", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
