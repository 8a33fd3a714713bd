"""Locks a process in, for good: Landlock for files and TCP, seccomp for system calls, resource limits.

Used by a model process on itself, before anything but the standard library is imported and while it has one thread:
Landlock binds the calling thread and the threads it starts later. What the kernel lacks is left out, and the level
that was reached is told: ``full`` is seccomp and Landlock for files, ``partial`` one of them, ``none`` neither.
Knows nothing of models.

Source: linux/landlock.h (ABI 1 to 7).
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from sealane_worker.model import seccomp

FULL, PARTIAL, NONE = "full", "partial", "none"
LEVELS = (NONE, PARTIAL, FULL)

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _IOCTL_DEVICE = 1, 2, 4, 8, 1 << 15
#: File rights that each ABI added: the highest bit it knows.
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2


@dataclass(frozen=True, slots=True)
class Policy:
    """What a process may still do.

    Attributes:
        read: files and folders to read.
        execute: folders to read and to load libraries from.
        use: devices to read and write.
        network: whether it may open connections.
        ports: TCP ports to connect to, where the kernel can tell ports apart.
        open_files: most descriptors.
    """

    read: tuple[str, ...] = ()
    execute: tuple[str, ...] = ()
    use: tuple[str, ...] = ()
    network: bool = False
    ports: tuple[int, ...] = ()
    open_files: int = 256


def available() -> str:
    """The level that this kernel gives; changes nothing."""
    return _level(seccomp=seccomp.available(), landlock=landlock_abi() >= 1)


def landlock_abi() -> int:
    """Version of Landlock; 0 where there is none."""
    return max(int(_libc().syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))), 0)


def apply(policy: Policy) -> str:
    """Lock this process in; returns the level reached. There is no way back.

    Raises:
        OSError: a part that the kernel has could not be applied.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What was sealed is in this memory in the clear: other processes of the same user must not read it (SECURITY 3.4).
    _check(_libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (policy.open_files, policy.open_files))
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    files = landlock_abi() >= 1
    if files:
        _landlock(policy)
    calls = seccomp.available()
    if calls:
        seccomp.install(network=policy.network)
    return _level(seccomp=calls, landlock=files)


def _level(*, seccomp: bool, landlock: bool) -> str:
    return LEVELS[int(seccomp) + int(landlock)]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _landlock(policy: Policy) -> None:
    abi = landlock_abi()
    file_rights = (1 << _FILE_BITS[min(abi, max(_FILE_BITS))]) - 1
    net_rights = _BIND_TCP | _CONNECT_TCP if abi >= 4 else 0
    scopes = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if abi >= 6 else 0
    attributes = struct.pack("<QQQ", file_rights, net_rights, scopes)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    libc = _libc()
    ruleset = _check(libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0), "landlock")
    try:
        _allow(ruleset, policy.read, _READ_FILE | _READ_DIR)
        _allow(ruleset, policy.execute, _READ_FILE | _READ_DIR | _EXECUTE)
        _allow(ruleset, policy.use, _READ_FILE | _WRITE_FILE | (_IOCTL_DEVICE if abi >= 5 else 0))
        if net_rights and policy.network:
            for port in policy.ports:
                rule = struct.pack("<QQ", _CONNECT_TCP, port)
                _check(libc.syscall(_LANDLOCK_ADD, ruleset, 2, rule, 0), f"landlock port {port}")
        _check(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, paths: Iterable[str], rights: int) -> None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there needs no leave
        try:
            # Rights of folders cannot be given for a file.
            folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            given = rights if folder else rights & ~_READ_DIR
            rule = struct.pack("<Qi", given, descriptor)
            _check(_libc().syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock {path}")
        finally:
            os.close(descriptor)
