"""One process of the stack: started, watched, started again when it dies by itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sealane.errors import Unavailable

#: Starts the module in a process that ends with this one.
LAUNCHER = "sealane_local.launch"
_FIRST_BACKOFF, _LAST_BACKOFF = 0.2, 5.0
#: Who ran this long was not ended by its own start, so the back-off begins anew.
_STEADY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Command:
    """How a process is started. `data_dir` is where it writes ``ports.json``; None where it writes none."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    data_dir: Path | None = None


class Child:
    """A process that should run. The watch's thread and others may use it at once; it never runs twice."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._backoff = _FIRST_BACKOFF
        self._started = 0.0
        self._lock = threading.RLock()

    @property
    def pid(self) -> int | None:
        """Id of the running process."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it unless it runs, and keep it running."""
        with self._lock:
            self._wanted = True
            if self.pid is None:
                self._start()

    def _start(self) -> None:
        if self.command.data_dir is not None:
            with contextlib.suppress(FileNotFoundError):
                (self.command.data_dir / "ports.json").unlink()
        self.command.log.parent.mkdir(parents=True, exist_ok=True)
        with self.command.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", LAUNCHER, str(os.getpid()), self.command.module, *self.command.arguments],
                env=self.command.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._started = time.monotonic()

    def watch(self) -> None:
        """Start it again if it died by itself, with back-off."""
        with self._lock:
            age = time.monotonic() - self._started
            if not self._wanted or self.pid is not None:
                if age > _STEADY_SECONDS:
                    self._backoff = _FIRST_BACKOFF
                return
            if age < self._backoff:
                return
            self._backoff = min(self._backoff * 2, _LAST_BACKOFF)
            self._start()

    def kill(self) -> None:
        """End it as a crash would, and leave it ended."""
        with self._lock:
            self._wanted = False
            self.crash()

    def crash(self) -> None:
        """End it as a crash would; the watch brings it back."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()

    def stop(self) -> None:
        """Ask it to end; :meth:`join` waits."""
        self._wanted = False
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def join(self, seconds: float) -> None:
        """Wait for its end, and end it where it takes too long."""
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.crash()

    def serving(self) -> bool:
        """Whether it has announced itself."""
        if self.pid is None or self.command.data_dir is None:
            return self.pid is not None
        try:
            announced = json.loads((self.command.data_dir / "ports.json").read_text())
        except (FileNotFoundError, ValueError):
            return False
        return bool(announced["pid"] == self.pid)

    def wait_serving(self, seconds: float) -> None:
        """Wait until it serves.

        Raises:
            Unavailable: it does not in time; the message ends with the end of its log.
        """
        deadline = time.monotonic() + seconds
        while not self.serving():
            self.watch()
            if time.monotonic() > deadline:
                tail = self.command.log.read_text(errors="replace")[-2000:] if self.command.log.exists() else ""
                raise Unavailable(f"{self.command.name} did not start in {seconds:g} s; its log ends with: {tail}")
            time.sleep(0.05)
