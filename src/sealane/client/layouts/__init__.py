"""Model folders of other servers and registries: read as they are, and written for them.

Nothing in a folder is run: no pickle is loaded, no archive unpacked, no link followed out of it.
"""

from __future__ import annotations

from sealane.client.layouts.incoming import Incoming
from sealane.client.layouts.reading import LAYOUTS, read
from sealane.client.layouts.writing import TARGETS, Outgoing, write

__all__ = ["LAYOUTS", "TARGETS", "Incoming", "Outgoing", "read", "write"]
