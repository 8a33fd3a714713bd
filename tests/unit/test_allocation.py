"""Freed memory stays in the process where the allocator can be told so."""

from __future__ import annotations

import ctypes
import platform

import pytest

from sealane import allocation


@pytest.mark.parametrize("arenas", [0, 2])
def test_glibc_takes_the_limits(arenas: int) -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    assert allocation.keep_freed(8 << 20, 8 << 20, arenas)


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Other())
    assert not allocation.keep_freed(1 << 20, 1 << 20)
