"""Where the local proxy listens: only where nobody but this machine can call."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sealane.client.proxy import check_address
from sealane.client.proxy_http import check_http_address
from sealane.errors import InvalidArgument


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("0.0.0.0:1", "not on loopback"),
        ("0.0.0.0:0", "not on loopback"),
        ("[::]:0", "not on loopback"),
        ("10.0.0.1:80", "not on loopback"),
        ("[::ffff:10.0.0.1]:80", "not on loopback"),
        ("example.com:80", "not on loopback"),
        (":80", "not on loopback"),
        ("", "not on loopback"),
        ("127.0.0.1", "not on loopback"),
        ("127.0.0.1:", "loopback"),
        ("127.0.0.1:http", "loopback"),
        ("127.0.0.1:-1", "loopback"),
        ("127.0.0.1:70000", "up to 65535"),
        ("127.0.0.1:" + "9" * 5000, "up to 65535"),
        ("unix:", "no socket"),
        ("unix:..", "no socket"),
        ("unix:/nowhere/proxy.sock", "no socket"),
        ("unix-abstract:proxy", "not on loopback"),
    ],
)
def test_addresses_that_are_refused(address: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        check_address(address)
    with pytest.raises(InvalidArgument):
        check_http_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.0.0.2:8500", "[::1]:0", "localhost:0", "localhost:65535"])
def test_addresses_on_loopback(address: str) -> None:
    check_address(address)
    check_http_address(address)


def test_a_socket_file_is_for_grpc_alone(tmp_path: Path) -> None:
    check_address(f"unix:{tmp_path / 'proxy.sock'}")
    with pytest.raises(InvalidArgument, match="host:port"):
        check_http_address(f"unix:{tmp_path / 'proxy.sock'}")


def test_a_socket_file_is_taken_over_only_from_nobody(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(InvalidArgument, match="listens on"):
            check_address(f"unix:{path}")
    check_address(f"unix:{path}")
