"""``sealane proxy``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, note
from sealane.errors import InvalidArgument


class _Options(TypedDict):
    listen: str
    http: str
    require: tuple[str, ...]
    session: bool
    direct: bool


@click.command()
@click.option(
    "--listen",
    default="127.0.0.1:8500",
    show_default=True,
    metavar="ADDRESS",
    help="host:port on loopback, or unix:PATH, which only you can open.",
)
@click.option("--http", default="", metavar="ADDRESS", help="Serve the REST forms too, at this host:port on loopback.")
@click.option(
    "--require", multiple=True, metavar="NAME=VALUE", help="Who may read it: tier=, region=, zone=, pool=, ..."
)
@click.option("--session/--no-session", default=True, show_default=True, help="Agree on keys once for many requests.")
@click.option("--direct", is_flag=True, help="Straight to the workers instead of through the gateway.")
@common
def proxy(cli: Cli, **options: Unpack[_Options]) -> None:
    """Speak TensorFlow Serving and Open Inference to applications on this machine, sealed towards the suite.

    Unchanged clients call it in plaintext, without a token; what they send leaves this machine sealed to a worker that
    auth vouches for. They call with your rights.

    Example: sealane proxy --listen 127.0.0.1:8500 --http 127.0.0.1:8501 --require region=eu
    """
    from sealane.client.proxy import Proxy, ProxyOptions, check_address
    from sealane.client.proxy_http import HttpPort, check_http_address
    from sealane.client.sealing_context import check_requirement

    listen, http = options["listen"], options["http"]
    check_address(listen)
    if http:
        check_http_address(http)
    require = requirement(options["require"])
    check_requirement(require)
    stopped = threading.Event()
    with cli.client() as client:
        served = Proxy(client.inference, ProxyOptions(require, options["session"], options["direct"]))
        rest = HttpPort(served)
        try:
            port, rest_port = served.listen(listen), rest.listen(http) if http else 0
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stopped.set())
            address = listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"
            note(f"listening on {address}" + (f", HTTP on {http.rpartition(':')[0]}:{rest_port}" if http else ""))
            stopped.wait()
        finally:
            rest.stop()
            served.stop()


def requirement(demands: Sequence[str]) -> dict[str, str | Sequence[str]]:
    """What ``--require NAME=VALUE`` demands: a name given twice allows both values.

    Raises:
        InvalidArgument: a demand without a value.
    """
    found: dict[str, list[str]] = {}
    for demand in demands:
        name, _, value = demand.partition("=")
        if not value:
            raise InvalidArgument(f"--require {demand!r} has no value; say NAME=VALUE", field="require")
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
