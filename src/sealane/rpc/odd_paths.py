"""Keeps a path that is not UTF-8 from ending an asyncio server.

grpcio's asyncio server decodes the path of every call in its accepting loop, outside any handler
(``rpc_state.method().decode()`` in ``_server_main_loop`` of ``aio/server.pyx.pxi``, seen in 1.85.1). One request with a
byte above 0x7f in ``:path`` raises there, before anybody knows who sent it: the loop ends, the listener closes, and
the process stays without it. No option of grpcio checks paths, and no hook of it comes before the loop.

What can be had is the error handler of that ``decode``: ``strict``, the one that Python looks up by name when it is
given none. This module puts one in its place that is strict for everybody else.
"""

from __future__ import annotations

import asyncio
import codecs
import sys

#: The Python code right above the accepting loop, which is compiled and has no frame of its own. A ``decode`` in
#: Python, a task's or a callback's, has the frame of its own function in between.
_EVENT_LOOP = asyncio.Handle._run.__code__


def survive_odd_paths() -> None:
    """Let the asyncio servers of this process take such a path for one with replacement characters: of no method.

    For the whole process and for good; to call it again changes nothing.
    """
    codecs.register_error("strict", _strict_but_for_the_event_loop)


def _strict_but_for_the_event_loop(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeDecodeError) and sys._getframe(1).f_code is _EVENT_LOOP:
        return "\N{REPLACEMENT CHARACTER}", error.end
    raise error
