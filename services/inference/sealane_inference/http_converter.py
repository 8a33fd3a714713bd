"""The processes that read and write large JSON for the gateway.

They are started when there is some, and end when there is none for a while, which gives their memory back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass

from sealane.errors import Unavailable
from sealane_inference.http_conversion import LENGTH, Frame, sizes_of

#: So many at once.
PROCESSES = 2
#: One that had nothing to do for so long ends.
IDLE_SECONDS = 60.0
#: No job takes so long; a process that does is ended.
JOB_SECONDS = 60.0


@dataclass(slots=True)
class _Process:
    """One of them, and when it ends."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    timer: asyncio.TimerHandle | None = None


class Converter:
    """Has jobs done, a few at once; the others wait their turn."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PROCESSES)
        self._idle: list[_Process] = []
        self._busy: set[asyncio.Task[Frame]] = set()

    async def run(self, job: Frame) -> Frame:
        """What came of a job.

        A caller that leaves does not take the process with him: it finishes, and is there for the next.

        Raises:
            Unavailable: the process ended.
        """
        await self._places.acquire()
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._busy.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End them all."""
        for task in tuple(self._busy):
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)
        while self._idle:
            found = self._idle.pop()
            _stop_timer(found)
            await _end(found)

    def _ended(self, task: asyncio.Task[Frame]) -> None:
        self._busy.discard(task)
        self._places.release()
        if not task.cancelled():
            task.exception()  # whoever waited for it has it, or has left

    async def _run(self, job: Frame) -> Frame:
        process = self._idle.pop() if self._idle else await _start()
        _stop_timer(process)
        whole = False
        try:
            async with asyncio.timeout(JOB_SECONDS):
                answer = await _exchange(process, job)
            whole = True
        except (OSError, EOFError, TimeoutError):
            raise Unavailable("large JSON cannot be read now; try again, or send the tensors in binary") from None
        finally:
            if not whole:
                await _end(process)
        self._keep(process)
        return answer

    def _keep(self, process: _Process) -> None:
        self._idle.append(process)
        process.timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._let_go, process)

    def _let_go(self, process: _Process) -> None:
        if process in self._idle:
            self._idle.remove(process)
            process.writer.close()  # the end of its input is the end of it


async def _start() -> _Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "sealane_inference.http_conversion",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # it multiplies nothing, and threads take address space
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return _Process(process, process.stdout, process.stdin)


async def _exchange(process: _Process, job: Frame) -> Frame:
    process.writer.writelines(job.pieces())
    await process.writer.drain()
    (length,) = LENGTH.unpack(await process.reader.readexactly(LENGTH.size))
    head, sizes = sizes_of(await process.reader.readexactly(length))
    return Frame(head, [await process.reader.readexactly(size) for size in sizes])


async def _end(process: _Process) -> None:
    process.writer.close()
    with contextlib.suppress(ProcessLookupError):
        process.process.kill()
    await process.process.wait()


def _stop_timer(process: _Process) -> None:
    if process.timer is not None:
        process.timer.cancel()
        process.timer = None
