"""A model process: ``python -P -m sealane_worker.model FD``, started by :mod:`sealane_worker.child`.

It reads one message from its control socket, locks itself in, loads the model, answers, and serves its slots until the
front hangs up. Nothing but the standard library is imported before the lock is on.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
from pathlib import Path
from typing import cast

from sealane_worker import control
from sealane_worker.memory import protect_memory
from sealane_worker.model import confine


def main() -> int:
    """Command line: the descriptor of the control socket."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        message = control.read_control(sock)
    except control.Disconnected:
        return 0
    with contextlib.suppress(OSError):  # when memory runs out a model goes before the front
        Path("/proc/self/oom_score_adj").write_text("500")
    protect_memory()
    level = confine.apply(_policy(cast(control.Header, message["policy"])))
    # After the lock: Landlock binds only threads that start later.
    threading.Thread(target=_exit_with, args=(sock,), name="hang-up", daemon=True).start()
    from sealane_worker.model import loading

    server = loading.load_and_answer(sock, message, level)
    if server is not None:
        server.serve()
    return 0


def _policy(fields: control.Header) -> confine.Policy:
    def paths(key: str) -> tuple[str, ...]:
        return tuple(cast(list[str], fields[key]))

    return confine.Policy(
        read=paths("read"),
        execute=paths("execute"),
        use=paths("use"),
        network=bool(fields["network"]),
        ports=tuple(cast(list[int], fields["ports"])),
        open_files=cast(int, fields["open_files"]),
    )


def _exit_with(sock: socket.socket) -> None:
    """End the process as soon as the front is gone, even in the middle of a long or endless inference."""
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    poller.poll()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
