"""REG-2: a 3 GiB artifact up and down. `python -m bench.registry_transfer [--gib N] [--dir FOLDER]`.

The artifact goes through a real registry (processes, TLS, tokens, records) by the SDK, and the same bytes through a
bare grpcio stream in the same messages of 1 MiB, with SHA-256 at the receiving end and nothing else: rounds of both,
one after the other; of each the quickest lap counts, because what else the machine does only adds. The bare stream has
TLS too, so that the ratio is fair; what it does in plaintext is printed beside it.

What the SDK hashes before it can name an upload is told by itself: the bare sender names nothing. Files are sparse and
lie in memory where there is room, because what is measured is the service and not the disk. For the same reason what a
lap leaves is removed right before the next such lap: where a virtual machine gives free memory back to its host, to get
it again takes several times as long as the whole transfer. So it is in the first laps, which do not count.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "stack"))

from control_plane import ControlPlane  # noqa: E402

from sealane.client import connect  # noqa: E402
from sealane.client.artifacts import _Source, no_progress  # noqa: E402
from sealane.rpc.channel import Target, dial  # noqa: E402

MESSAGE = 1 << 20
ROUNDS = 4
MEMORY_BOUND, SHARE_BOUND = 64 << 20, 0.60
_OPTIONS = [("grpc.max_receive_message_length", 4 << 20), ("grpc.max_send_message_length", 4 << 20)]


def serve(folder: Path, port_file: Path) -> None:
    """The bare server: two methods, each with TLS and in plaintext, until it is ended."""

    def up(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        hasher = hashlib.sha256()
        for message in messages:
            hasher.update(message)
        return hasher.digest()

    def down(path: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        return pieces(Path(path.decode()))

    server = grpc.server(ThreadPoolExecutor(4), options=_OPTIONS)
    handlers = {
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Down": grpc.unary_stream_rpc_method_handler(down),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", handlers),))
    pair = ((folder / "key.pem").read_bytes(), (folder / "chain.pem").read_bytes())
    secure = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    plain = server.add_insecure_port("127.0.0.1:0")
    server.start()
    port_file.with_suffix(".new").write_text(f"{secure} {plain}")
    port_file.with_suffix(".new").replace(port_file)
    server.wait_for_termination()


def pieces(path: Path) -> Iterator[bytes]:
    """A file in messages."""
    with path.open("rb", buffering=0) as file:
        while data := file.read(MESSAGE):
            yield data


class Bare:
    """Calls the bare server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._up = channel.stream_unary("/Bare/Up")
        self._down = channel.unary_stream("/Bare/Down")

    def up(self, path: Path) -> None:
        """Send a file; the server hashes."""
        self._up(pieces(path))

    def down(self, path: Path) -> None:
        """Fetch a file and hash it."""
        hasher = hashlib.sha256()
        for message in self._down(str(path).encode()):
            hasher.update(message)


def peak(pid: int | str) -> int:
    """Most resident memory since the last :func:`forget_peak`, bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found.group(1)) << 10


def forget_peak(pid: int | str) -> int:
    """Start anew; the resident memory now, bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def sparse(path: Path, size: int, mark: int) -> None:
    """A sparse file, unlike the others by its mark."""
    with path.open("wb") as file:
        file.write(mark.to_bytes(8, "big"))
        file.truncate(size)


def measure(home: Path, size: int) -> bool:
    """Both, in turns; whether the bounds are kept."""
    plane = ControlPlane(home)
    bare_process = None
    try:
        plane.start()
        identity = _identity(plane.home / "registry")
        (home / "bare").mkdir()
        for source, name in zip(identity, ("key.pem", "chain.pem"), strict=True):
            shutil.copy(source, home / "bare" / name)
        ports = home / "bare" / "ports"
        bare_process = subprocess.Popen(
            [sys.executable, "-m", "bench.registry_transfer", "serve", str(home / "bare"), str(ports)], cwd=ROOT
        )
        while not ports.exists():
            time.sleep(0.05)
        secure, plain = ports.read_text().split()
        bundle = (plane.home / "pki" / "ca.pem").read_bytes()
        over_tls = Bare(dial(Target(f"127.0.0.1:{secure}", bundle, "registry.service.sealane")))
        in_plaintext = Bare(grpc.insecure_channel(f"127.0.0.1:{plain}", options=_OPTIONS))
        return _compare(plane, home, size, over_tls, in_plaintext)
    finally:
        if bare_process is not None:
            bare_process.terminate()
            bare_process.wait()
        plane.stop()


def _identity(folder: Path) -> tuple[Path, Path]:
    from sealane.security import tls

    return next(folder.rglob(tls.KEY)), next(folder.rglob(tls.CHAIN))


def _compare(plane: ControlPlane, home: Path, size: int, over_tls: Bare, in_plaintext: Bare) -> bool:
    process = plane.services["registry"].process
    assert process is not None
    laps: dict[str, list[float]] = {}
    grown = client_grown = 0
    path, back, stored = home / "artifact", home / "back", home / "nothing"
    with connect(plane.home) as client:
        client.artifacts.upload(b"warm up")
        for round_ in range(ROUNDS):
            sparse(path, size, round_)
            client_before, before = forget_peak("self"), forget_peak(process.pid)

            def lap(name: str, work: Callable[[], object]) -> None:
                laps.setdefault(name, []).append(seconds(work))

            sha256 = _sha256(path)
            lap("hash", functools.partial(_sha256, path))
            shutil.rmtree(stored, ignore_errors=True)
            lap("up", functools.partial(client.artifacts._store, _Source(path), sha256, no_progress))
            stored = plane.home / "registry" / "cas" / "sha256" / sha256[:2]
            back.unlink(missing_ok=True)
            lap("down", functools.partial(client.artifacts.download, sha256, back))
            grown = max(grown, peak(process.pid) - before)
            client_grown = max(client_grown, peak("self") - client_before)
            lap("bare up", lambda: over_tls.up(path))
            lap("bare down", lambda: over_tls.down(path))
            lap("plaintext up", lambda: in_plaintext.up(path))
            lap("plaintext down", lambda: in_plaintext.down(path))
    return _tell(laps, size, grown, client_grown)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tell(laps: dict[str, list[float]], size: int, grown: int, client_grown: int) -> bool:
    best = {name: min(taken) for name, taken in laps.items()}
    for name, taken in laps.items():
        print(f"{name}: {size / best[name] / 1e6:.0f} MB/s (laps of {', '.join(f'{lap:.1f}' for lap in taken)} s)")
    up, down = best["bare up"] / best["up"], best["bare down"] / best["down"]
    with_hash = best["bare up"] / (best["up"] + best["hash"])
    print(
        f"up with the sender's hash counted in: {with_hash:.0%}; the client grew by {client_grown / (1 << 20):.0f} MiB"
    )
    print(
        f"figure: {size / (1 << 30):.0f} GiB with TLS, up {up:.0%} and down {down:.0%} of a bare grpcio stream with "
        f"TLS and SHA-256; the registry grew by {grown / (1 << 20):.0f} MiB"
    )
    return up >= SHARE_BOUND and down >= SHARE_BOUND and grown <= MEMORY_BOUND


def main(arguments: list[str]) -> int:
    """Exit code 1 where a bound is not kept."""
    if arguments[:1] == ["serve"]:
        serve(Path(arguments[1]), Path(arguments[2]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=3.0)
    parser.add_argument("--dir", default="")
    options = parser.parse_args(arguments)
    size = int(options.gib * (1 << 30))
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 * size
    folder = options.dir or (str(memory) if roomy else None)
    with tempfile.TemporaryDirectory(dir=folder, prefix="transfer-") as home:
        print(f"files in {Path(home).parent}, {os.cpu_count()} processors")
        return 0 if measure(Path(home), size) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
