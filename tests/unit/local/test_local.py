"""The pieces of the local stack that need no stack: span trees, memory scan, link."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sealane.errors import FailedPrecondition
from sealane_local import link, traces
from sealane_local.lock import FolderLock
from sealane_local.memory_scan import find_in_memory, tells
from sealane_local.plan import EDGE, Options, Ports, worker_environment


def span(service: str, name: str, span_id: str, parent: str, start: int) -> dict[str, object]:
    times = {"start_ns": start, "end_ns": start + 10, "attributes": {}}
    return {"service": service, "name": name, "trace_id": "t", "span_id": span_id, "parent_id": parent, **times}


def test_a_tree_is_drawn_from_the_files_of_all_services(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(span("client", "root", "1", "0", 0)) + "\n")
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps(item) for item in (span("w", "leaf", "3", "2", 2), span("g", "middle", "2", "1", 1)))
    )
    lines = traces.draw(traces.read_trace(tmp_path, "t"))
    assert [line.split()[-4] for line in lines] == ["root", "middle", "leaf"]
    depth = [len(line) - len(line.lstrip(" │└├─")) for line in lines]
    assert depth == sorted(depth) and depth[0] == 0
    assert traces.read_trace(tmp_path, "other") == []


def test_the_memory_scan_finds_what_is_there_and_only_that() -> None:
    secret = bytes(range(100, 140))
    code = "import sys; secret = bytes(range(100, 140)); print('up', flush=True); sys.stdin.read(); print(secret)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    try:
        assert find_in_memory(process.pid, [secret]) == 1
        assert find_in_memory(process.pid, [bytes(range(60, 100))[::-1]]) == 0
    finally:
        process.communicate(b"")


def test_what_may_stand_anywhere_by_chance_tells_nothing() -> None:
    answer = np.zeros(10, np.float32)
    answer[3] = 0.99609375  # what an int8 classifier says: found in processes that never saw it
    assert not tells(answer.tobytes())
    assert not tells(bytes(100))
    assert tells(np.random.default_rng(1).random(10, np.float32).tobytes())
    assert tells(bytes(range(100, 140)))


async def test_a_link_carries_bytes_both_ways() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read(100)).upper())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    free = await asyncio.start_server(echo, "127.0.0.1", 0)
    local = free.sockets[0].getsockname()[1]
    free.close()
    await free.wait_closed()
    task = asyncio.create_task(link.run([f"127.0.0.1:{local}=127.0.0.1:{port}"]))
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", local)
    writer.write(b"hello")
    assert await reader.read(100) == b"HELLO"
    writer.close()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.close()


def test_ports_stay_the_same_over_a_restart(tmp_path: Path) -> None:
    options = Options(tmp_path)
    first = Ports(options)
    assert Ports(options).address("auth_mesh") == first.address("auth_mesh")
    settings = worker_environment(options, first, EDGE)
    assert settings["SEALANE_WORKER_RUNTIMES"] == "litert"
    assert settings["MALLOC_TOP_PAD_"]


def test_a_folder_runs_once(tmp_path: Path) -> None:
    first = FolderLock(tmp_path).take()
    with pytest.raises(FailedPrecondition, match=f"pid {os.getpid()}"):
        FolderLock(tmp_path).take()
    first.release()
    FolderLock(tmp_path).take().release()


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from sealane_local.child import Child, Command
child = Child(Command("link", "sealane_local.link", ("127.0.0.1:0=127.0.0.1:1",), {}, Path(sys.argv[1]) / "log"))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
