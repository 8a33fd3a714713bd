"""The filter of system calls that a model process puts on itself: what is refused, as a BPF program.

Sources: linux/seccomp.h, linux/filter.h, linux/fcntl.h, linux/mman.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

from sealane_worker.model.syscalls import MACHINES, Machine

_PR_SET_SECCOMP, _PR_GET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 21, 2
_RET_ALLOW, _RET_ERRNO, _RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_ANY, _JUMP_GREATER_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x54, 0x06
_NR_AT, _ARCH_AT, _ARGUMENT_AT = 0, 4, 16
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x00010000
#: fcntl F_SETOWN, F_SETSIG, F_SETOWN_EX and ioctl FIOSETOWN, SIOCSPGRP: signals to others through a descriptor.
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 8, 10, 15, 0x8901, 0x8902
#: mmap flags: memory that is shared and anonymous is no part of a process's resident set once it is unmapped.
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_X32_BIT = 0x40000000


def available() -> bool:
    """Whether this kernel filters system calls, and their numbers are known here."""
    libc = ctypes.CDLL(None, use_errno=True)
    return platform.machine() in MACHINES and libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def install(*, network: bool) -> None:
    """Filter this process's calls from here on.

    Raises:
        OSError: the kernel refused the filter.
    """
    program = filter_program(MACHINES[platform.machine()], os.getpid(), network=network)
    packed = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    head = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


Instruction = tuple[int, int, int, int]


def filter_program(machine: Machine, pid: int, *, network: bool) -> Sequence[Instruction]:
    """The BPF program: refuses what is listed, allows the rest.

    Another architecture's calls end the process: their numbers mean something else.
    """
    refuse: Instruction = (_RETURN, 0, 0, _RET_ERRNO | _EPERM)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _RET_KILL),
        (_LOAD, 0, 0, _NR_AT),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT),
        refuse,
        # Without clone3 the C library falls back to clone, whose flags can be seen.
        (_JUMP_EQUAL, 0, 1, machine.clone3),
        (_RETURN, 0, 0, _RET_ERRNO | _ENOSYS),
    ]
    for number in (*machine.refused.values(), *(() if network else machine.network.values())):
        program += [(_JUMP_EQUAL, 0, 1, number), refuse]
    program += _only_threads(machine.clone)
    for number in machine.to_own_process:
        program += _only_argument(number, (pid,))
    for number in machine.to_own_thread:
        program += _only_argument(number, (0,))
    program += _only_argument(machine.prlimit, (0, pid))
    program.append((_JUMP_EQUAL, 0, 1, machine.setpriority))
    program.append(refuse)
    program += _without(machine.fcntl, 1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX))
    program += _without(machine.ioctl, 1, (_FIOSETOWN, _SIOCSPGRP))
    program += _without_flags(machine.mmap, 3, _MAP_SHARED | _MAP_ANONYMOUS)
    return [*program, (_RETURN, 0, 0, _RET_ALLOW)]


def _only_threads(clone: int) -> list[Instruction]:
    return [
        (_JUMP_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        (_JUMP_ANY, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _RET_ERRNO | _EPERM),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]


def _without(number: int, argument: int, refused: Sequence[int]) -> list[Instruction]:
    """Refuse a call with one of these values in an argument."""
    checks: list[Instruction] = [(_JUMP_EQUAL, len(refused) - index, 0, value) for index, value in enumerate(refused)]
    body: list[Instruction] = [
        (_LOAD, 0, 0, _ARGUMENT_AT + 8 * argument),
        *checks,
        (_RETURN, 0, 0, _RET_ALLOW),
        (_RETURN, 0, 0, _RET_ERRNO | _EPERM),
    ]
    return [(_JUMP_EQUAL, 0, len(body), number), *body]


def _without_flags(number: int, argument: int, flags: int) -> list[Instruction]:
    """Refuse a call that has all of these flags in an argument."""
    body: list[Instruction] = [
        (_LOAD, 0, 0, _ARGUMENT_AT + 8 * argument),
        (_AND, 0, 0, flags),
        (_JUMP_EQUAL, 1, 0, flags),
        (_RETURN, 0, 0, _RET_ALLOW),
        (_RETURN, 0, 0, _RET_ERRNO | _EPERM),
    ]
    return [(_JUMP_EQUAL, 0, len(body), number), *body]


def _only_argument(number: int, allowed: Sequence[int]) -> list[Instruction]:
    """Allow a call only with one of these values as its first argument (32 bits, as process ids are)."""
    checks: list[Instruction] = [(_JUMP_EQUAL, len(allowed) - index, 0, value) for index, value in enumerate(allowed)]
    body: list[Instruction] = [
        (_LOAD, 0, 0, _ARGUMENT_AT),
        *checks,
        (_RETURN, 0, 0, _RET_ERRNO | _EPERM),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    return [(_JUMP_EQUAL, 0, len(body), number), *body]
