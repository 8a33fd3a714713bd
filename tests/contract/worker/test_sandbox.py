"""WORK-6: what a hostile model tries, and what becomes of it (SECURITY 3.10)."""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hostile_box import say, spec_of, start

from sealane.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from sealane_worker.box import Box, BoxLimits, BoxState
from sealane_worker.model import confine
from sealane_worker.model.seccomp import filter_program
from sealane_worker.model.syscalls import MACHINES
from sealane_worker.runtimes import require_runtime
from sealane_worker.sandbox import check_data_folder, policy_for
from sealane_worker.spec import HostPolicy

LEVEL = confine.available()
NEEDS_FULL = pytest.mark.skipif(LEVEL != "full", reason=f"this kernel gives sandbox level {LEVEL!r}")
NEEDS_SECCOMP = pytest.mark.skipif(LEVEL == "none", reason="this kernel gives no sandbox")


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: BoxLimits) -> Iterator[Box]:
    """A hostile model in its box."""
    monkeypatch.setenv("SEALANE_TEST_SECRET", "xyzzy")
    made = start(tmp_path, monkeypatch, quick)
    yield made
    made.close()


def test_the_level_reached_is_the_level_told(box: Box) -> None:
    assert box.loaded.sandbox == LEVEL


def test_its_memory_is_closed_to_others_and_leaves_no_core(box: Box) -> None:
    """What was sealed is in there in the clear (SECURITY 3.4)."""
    assert say(box, "dumpable") == "done 0"
    assert box.pid is not None and resource.prlimit(box.pid, resource.RLIMIT_CORE) == (0, 0)


@NEEDS_FULL
@pytest.mark.parametrize(
    ("attempt", "wanted"),
    [
        ("read /etc/passwd", "refused EACCES"),
        ("read {secret}", "refused EACCES"),
        ("list /", "refused EACCES"),
        ("list /proc/1", "refused EACCES"),
        ("proc", "refused EACCES"),
        ("write {folder}/planted", "refused EACCES"),
        ("write {model}", "refused EACCES"),
        ("write /dev/shm/planted", "refused EACCES"),
    ],
)
def test_files_outside_the_model_are_out_of_reach(box: Box, tmp_path: Path, attempt: str, wanted: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("xyzzy")
    places = {"secret": secret, "folder": tmp_path, "model": tmp_path / "model" / "model.txt"}
    assert say(box, attempt.format(**places)) == wanted
    assert say(box, f"read {places['model']}") == "done 0", "its own file is within reach"


@NEEDS_SECCOMP
@pytest.mark.parametrize(
    "attempt",
    [
        *("fork", "exec /bin/true", "ptrace", "signal", "signal-by-descriptor", "shared-memory"),
        *("affinity", "priority", "chmod /etc/hostname", "touch /etc/hostname", "chown /etc/hostname"),
    ],
)
def test_other_processes_are_out_of_reach(box: Box, attempt: str) -> None:
    before = box.pid
    assert say(box, attempt) == "refused EPERM"
    assert box.pid == before


@NEEDS_SECCOMP
def test_the_network_is_out_of_reach(box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert say(box, f"connect 127.0.0.1:{port}") == "refused EPERM"
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_descriptors_run_out_in_the_model_alone(box: Box) -> None:
    assert say(box, "descriptors 100000").startswith("done refused EMFILE after")
    assert say(box, "echo alive") == "done alive"


def test_memory_beyond_the_limit_ends_the_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: BoxLimits
) -> None:
    box = start(tmp_path, monkeypatch, quick, HostPolicy(memory_limit_bytes=256 << 20))
    dead = box.pid
    with pytest.raises(Unavailable) as crashed:
        say(box, "memory", 20)
    assert crashed.value.reason == "MODEL_CRASHED"
    _until(lambda: box.state is BoxState.READY and box.pid != dead)
    assert say(box, "echo alive") == "done alive"
    box.close()


def test_memory_beyond_the_limit_ends_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: BoxLimits
) -> None:
    with pytest.raises(ResourceExhausted) as refused:
        start(tmp_path, monkeypatch, quick, HostPolicy(memory_limit_bytes=256 << 20), at_load="memory")
    assert refused.value.reason == "MODEL_MEMORY"
    assert "256 MiB" in refused.value.message


def test_a_model_that_never_answers_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: BoxLimits) -> None:
    box = start(tmp_path, monkeypatch, quick)
    hung = box.pid
    with pytest.raises(DeadlineExceeded):
        say(box, "sleep 60", 0.2)
    _until(lambda: box.state is BoxState.READY and box.pid != hung)
    assert say(box, "echo alive") == "done alive"
    box.close()


def test_a_model_that_computes_for_nobody_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: BoxLimits
) -> None:
    limits = BoxLimits(load=20, idle_cpu=0.5, look=0.05, backoff_first=0.02)
    box = start(tmp_path, monkeypatch, limits)
    greedy = box.pid
    assert say(box, "spin 60") == "done spinning"
    _until(lambda: box.state is BoxState.READY and box.pid != greedy)
    assert say(box, "echo alive") == "done alive"
    box.close()


def test_a_model_that_sends_what_nobody_asked_for_is_ended(box: Box) -> None:
    liar = box.pid
    with pytest.raises((Unavailable, Internal)):
        for _ in range(60):  # on the slot that carried it, or the next
            say(box, "lie")
    _until(lambda: box.state is BoxState.READY and box.pid != liar)
    assert say(box, "echo alive") == "done alive"


def test_complaints_of_any_length_fail_their_request_alone(box: Box) -> None:
    before = box.pid
    with pytest.raises(InvalidArgument) as refused:
        say(box, "complain")
    assert len(refused.value.message) <= 2000
    assert (say(box, "echo alive"), box.pid) == ("done alive", before)


def test_where_python_was_started_is_no_place_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = policy_for(spec_of(tmp_path), require_runtime("litert"), HostPolicy())
    assert str(tmp_path) not in policy.execute
    check_data_folder(tmp_path / "data", HostPolicy())
    for inside in (sys.prefix, "/usr/lib/sealane"):
        with pytest.raises(InvalidArgument) as refused:
            check_data_folder(Path(inside) / "data", HostPolicy())
        assert refused.value.reason == "DATA_FOLDER_READABLE"


def test_nothing_of_the_worker_is_inherited(box: Box) -> None:
    assert "SEALANE_TEST_SECRET" not in say(box, "environment")
    targets = [str(link.readlink()) for link in Path(f"/proc/{box.pid}/fd").iterdir()]
    kept = [target for target in targets if not target.startswith(("socket:", "pipe:", "anon_inode:", "/dev/null"))]
    assert [target for target in kept if "memfd" not in target] == []


def test_a_worker_that_demands_more_than_the_kernel_gives_refuses_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: BoxLimits
) -> None:
    monkeypatch.setattr(confine, "LEVELS", (*confine.LEVELS, "more than there is"))
    with pytest.raises(FailedPrecondition) as refused:
        start(tmp_path, monkeypatch, quick, HostPolicy(sandbox="more than there is"))
    assert refused.value.reason == "SANDBOX_LEVEL"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_of_every_architecture_decides_as_it_is_meant(machine: str) -> None:
    numbers, pid = MACHINES[machine], 4711
    program = filter_program(numbers, pid, network=False)
    decide = lambda number, argument=0: _decide(program, numbers.audit, number, argument)  # noqa: E731
    refused, allowed = 0x00050001, 0x7FFF0000
    for number in (*numbers.refused.values(), *numbers.network.values()):
        assert decide(number) == refused
    assert decide(numbers.clone, 0x00010000 | 17) == allowed, "a thread"
    assert decide(numbers.clone, 17) == refused, "a process"
    assert decide(numbers.clone3) == 0x00050000 | 38, "falls back to clone"
    for number in numbers.to_own_process:
        assert (decide(number, pid), decide(number, pid - 1), decide(number, 0)) == (allowed, refused, refused)
    for number in numbers.to_own_thread:
        assert (decide(number, 0), decide(number, pid), decide(number, 1)) == (allowed, refused, refused)
    assert (decide(numbers.prlimit, 0), decide(numbers.prlimit, 1)) == (allowed, refused)
    assert decide(numbers.setpriority) == refused
    second = lambda number, value: _decide(program, numbers.audit, number, 0, {24: value})  # noqa: E731
    assert [second(numbers.fcntl, command) for command in (8, 10, 15, 1, 3)] == [refused] * 3 + [allowed] * 2
    assert [second(numbers.ioctl, command) for command in (0x8901, 0x8902, 0x5401)] == [refused] * 2 + [allowed]
    flags = lambda value: _decide(program, numbers.audit, numbers.mmap, 0, {40: value})  # noqa: E731
    assert [flags(value) for value in (0x21, 0x61, 0x22, 0x01, 0x02)] == [refused] * 2 + [allowed] * 3
    assert decide(63) == allowed
    assert _decide(program, numbers.audit ^ 1, 63, 0) == 0x80000000, "another architecture's numbers"
    assert decide(0x40000000 | 59) == refused, "x32"
    networked = filter_program(numbers, pid, network=True)
    assert _decide(networked, numbers.audit, numbers.network["connect"], 0) == allowed


def _decide(program: object, audit: int, number: int, argument: int, others: Mapping[int, int] | None = None) -> int:
    """What the kernel would do: a machine for the few instructions that are used."""
    assert isinstance(program, list)
    data = {0: number, 4: audit, 16: argument, 24: 0, 32: 0, 40: 0, **(others or {})}
    accumulator = at = 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        if code == 0x06:
            assert isinstance(value, int)
            return value
        if code == 0x20:
            accumulator = data[value]
            continue
        if code == 0x54:
            accumulator &= value
            continue
        true = {0x15: accumulator == value, 0x45: bool(accumulator & value), 0x35: accumulator >= value}[code]
        at += yes if true else no


def _until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "did not come true within 20 s"
        time.sleep(0.02)
