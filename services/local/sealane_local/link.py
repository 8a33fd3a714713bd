"""A cable that can be cut: forwards local ports to others, until it is killed.

``python -m sealane_local.link 127.0.0.1:5001=127.0.0.1:6001 ...``. What passes is TLS from end to end; the
link sees bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial

_CHUNK = 1 << 16


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _forward(target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host, _, port = target.rpartition(":")
    try:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
    except OSError:
        writer.close()
        return
    async with asyncio.TaskGroup() as group:
        group.create_task(_pump(reader, far_writer))
        group.create_task(_pump(far_reader, writer))


async def run(links: list[str]) -> None:
    """Forward until killed."""
    servers = []
    for link in links:
        listen, _, target = link.partition("=")
        host, _, port = listen.rpartition(":")
        servers.append(await asyncio.start_server(partial(_forward, target), host, int(port)))
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1:]))
