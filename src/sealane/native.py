"""The native library, where it is installed: `make native`, or ``pip install ./services/worker/native``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

__all__ = ["library"]

log = logging.getLogger(__name__)

#: What is expected of it; `INTERFACE` in its `lib.rs`. Another one would fail in the middle of a call.
INTERFACE = 2

if TYPE_CHECKING:
    import sealane_native as library
else:
    try:
        import sealane_native as library
    except ImportError:
        library = None
    else:
        if getattr(library, "INTERFACE", 1) != INTERFACE:
            log.warning("sealane-native is of another version and is not used; install the one that belongs to this")
            library = None
