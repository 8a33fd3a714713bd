"""Keeps the garbage collector from looking again and again at what stays for as long as the process lives."""

from __future__ import annotations

import gc

#: Objects made, beyond those that went, before the youngest are looked at. A call makes some twenty.
YOUNGEST = 10_000


def settle() -> None:
    """Leave everything that is there now alone, for good; to be called once, when the process has started.

    Modules, descriptors and what is known of a fleet are hundreds of thousands of objects, and to walk them is a tenth
    of what a forwarded call costs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNGEST, *gc.get_threshold()[1:])
