"""Locks a process in, for good: Landlock for files and TCP, seccomp for system calls, resource limits.

Used by a model process on itself, before anything but the standard library is imported and while it has one thread:
Landlock binds the calling thread and the threads it starts later. What the kernel lacks is left out, and the level
that was reached is told: ``full`` is seccomp and Landlock for files, ``partial`` one of them, ``none`` neither.
Knows nothing of models.

Sources: linux/landlock.h (ABI 1 to 7), linux/seccomp.h, linux/filter.h, the kernel's system call tables.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FULL, PARTIAL, NONE = "full", "partial", "none"
LEVELS = (NONE, PARTIAL, FULL)

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_GET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 21, 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _IOCTL_DEVICE = 1, 2, 4, 8, 1 << 15
#: File rights that each ABI added: the highest bit it knows.
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2

_RET_ALLOW, _RET_ERRNO, _RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_ANY, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NR_AT, _ARCH_AT, _ARGUMENT_AT = 0, 4, 16
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000


@dataclass(frozen=True, slots=True)
class _Machine:
    """System call numbers of one architecture."""

    audit: int
    refused: dict[str, int]
    network: dict[str, int]
    clone: int
    clone3: int
    to_own_process: tuple[int, ...]
    """Calls whose first argument must be this process: kill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo."""
    prlimit: int


_X86_64 = _Machine(
    audit=0xC000003E,
    refused={
        "fork": 57,
        "vfork": 58,
        "execve": 59,
        "execveat": 322,
        "ptrace": 101,
        "tkill": 200,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "pidfd_open": 434,
        "pidfd_getfd": 438,
        "pidfd_send_signal": 424,
        "kcmp": 312,
        "process_madvise": 440,
        "process_mrelease": 448,
        "bpf": 321,
        "keyctl": 250,
        "add_key": 248,
        "request_key": 249,
        "perf_event_open": 298,
        "io_uring_setup": 425,
        "io_uring_enter": 426,
        "io_uring_register": 427,
        "userfaultfd": 323,
        "unshare": 272,
        "setns": 308,
        "mount": 165,
        "umount2": 166,
        "pivot_root": 155,
        "chroot": 161,
        "fsopen": 430,
        "fsconfig": 431,
        "fsmount": 432,
        "fspick": 433,
        "move_mount": 429,
        "open_tree": 428,
        "mount_setattr": 442,
        "init_module": 175,
        "finit_module": 313,
        "delete_module": 176,
        "kexec_load": 246,
        "kexec_file_load": 320,
        "reboot": 169,
        "swapon": 167,
        "swapoff": 168,
        "acct": 163,
        "settimeofday": 164,
        "clock_settime": 227,
        "clock_adjtime": 305,
        "adjtimex": 159,
        "sethostname": 170,
        "setdomainname": 171,
        "iopl": 172,
        "ioperm": 173,
        "personality": 135,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "quotactl": 179,
        "lookup_dcookie": 212,
        "shmget": 29,
        "shmat": 30,
        "msgget": 68,
        "semget": 64,
        "mq_open": 240,
        "fanotify_init": 300,
        "setuid": 105,
        "setgid": 106,
        "setreuid": 113,
        "setregid": 114,
        "setgroups": 116,
        "setresuid": 117,
        "setresgid": 119,
        "capset": 126,
        "modify_ldt": 154,
        "vhangup": 153,
        "syslog": 103,
        "setsid": 112,
    },
    network={"socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288},
    clone=56,
    clone3=435,
    to_own_process=(62, 234, 129, 297),
    prlimit=302,
)
_AARCH64 = _Machine(
    audit=0xC00000B7,
    refused={
        "execve": 221,
        "execveat": 281,
        "ptrace": 117,
        "tkill": 130,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "pidfd_open": 434,
        "pidfd_getfd": 438,
        "pidfd_send_signal": 424,
        "kcmp": 272,
        "process_madvise": 440,
        "process_mrelease": 448,
        "bpf": 280,
        "keyctl": 219,
        "add_key": 217,
        "request_key": 218,
        "perf_event_open": 241,
        "io_uring_setup": 425,
        "io_uring_enter": 426,
        "io_uring_register": 427,
        "userfaultfd": 282,
        "unshare": 97,
        "setns": 268,
        "mount": 40,
        "umount2": 39,
        "pivot_root": 41,
        "chroot": 51,
        "fsopen": 430,
        "fsconfig": 431,
        "fsmount": 432,
        "fspick": 433,
        "move_mount": 429,
        "open_tree": 428,
        "mount_setattr": 442,
        "init_module": 105,
        "finit_module": 273,
        "delete_module": 106,
        "kexec_load": 104,
        "kexec_file_load": 294,
        "reboot": 142,
        "swapon": 224,
        "swapoff": 225,
        "acct": 89,
        "settimeofday": 170,
        "clock_settime": 112,
        "clock_adjtime": 266,
        "adjtimex": 171,
        "sethostname": 161,
        "setdomainname": 162,
        "personality": 92,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "quotactl": 60,
        "lookup_dcookie": 18,
        "shmget": 194,
        "shmat": 196,
        "msgget": 186,
        "semget": 190,
        "mq_open": 180,
        "fanotify_init": 262,
        "setuid": 146,
        "setgid": 144,
        "setreuid": 145,
        "setregid": 143,
        "setgroups": 159,
        "setresuid": 147,
        "setresgid": 149,
        "capset": 91,
        "vhangup": 58,
        "syslog": 116,
        "setsid": 157,
    },
    network={"socket": 198, "connect": 203, "accept": 202, "bind": 200, "listen": 201, "accept4": 242},
    clone=220,
    clone3=435,
    to_own_process=(129, 131, 138, 240),
    prlimit=261,
)
_MACHINES = {"x86_64": _X86_64, "aarch64": _AARCH64}


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
    return _level(seccomp=_seccomp_available(), landlock=landlock_abi() >= 1)


def landlock_abi() -> int:
    """Version of Landlock; 0 where there is none."""
    return max(int(_libc().syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))), 0)


def apply(policy: Policy) -> str:
    """Lock this process in; returns the level reached. There is no way back.

    Raises:
        OSError: a part that the kernel has could not be applied.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (policy.open_files, policy.open_files))
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    files = landlock_abi() >= 1
    if files:
        _landlock(policy)
    calls = _seccomp_available()
    if calls:
        _seccomp(policy)
    return _level(seccomp=calls, landlock=files)


def _level(*, seccomp: bool, landlock: bool) -> str:
    return LEVELS[int(seccomp) + int(landlock)]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _seccomp_available() -> bool:
    return platform.machine() in _MACHINES and _libc().prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


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


def _seccomp(policy: Policy) -> None:
    program = filter_program(_MACHINES[platform.machine()], os.getpid(), network=policy.network)
    packed = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    head = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer))
    _check(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0), "seccomp")


Instruction = tuple[int, int, int, int]


def filter_program(machine: _Machine, pid: int, *, network: bool) -> Sequence[Instruction]:
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
    program += _only_argument(machine.prlimit, (0, pid))
    return [*program, (_RETURN, 0, 0, _RET_ALLOW)]


def _only_threads(clone: int) -> list[Instruction]:
    return [
        (_JUMP_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        (_JUMP_ANY, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _RET_ERRNO | _EPERM),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]


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
