"""Freed memory stays in the process where the allocator can be told so."""

from __future__ import annotations

import ctypes
import platform

import pytest

from sealane_scheduler import heap


def test_glibc_takes_both_limits() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    assert heap.keep_freed()


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Other())
    assert not heap.keep_freed()
