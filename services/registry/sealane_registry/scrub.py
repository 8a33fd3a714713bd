"""Reads all blobs through, again and again and slowly, and sets aside what no longer matches: before anybody asks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from sealane.clock import Clock
from sealane.errors import DataLoss, SealaneError
from sealane_registry.blobs import CORRUPT, Blobs

log = logging.getLogger("sealane.registry.scrub")


@dataclass(slots=True)
class Scrubbed:
    """Counts since the start."""

    blobs: int = 0
    bytes: int = 0
    corrupt: int = 0
    failed: int = 0
    """Blobs that could not be read, because the store was out of reach."""
    rounds: int = 0
    finished: float = 0.0
    """When the last round ended, seconds since 1970; 0 before the first."""


@dataclass(slots=True)
class Scrub:
    """The rule.

    Args:
        blobs: what is read.
        found: told the digest of each blob that was set aside.
        pause: waits so many seconds; false where the service ends.
        rate: most bytes per second, on average.
        clock: tells the time.
    """

    blobs: Blobs
    found: Callable[[str], None]
    pause: Callable[[float], bool]
    rate: float
    clock: Clock
    counts: Scrubbed = field(default_factory=Scrubbed)

    def round(self) -> bool:
        """Read every blob once; false where the service ends before that."""
        for sha256 in [blob.sha256 for blob in self.blobs.list()]:
            try:
                for size in self.blobs.verify(sha256):
                    self.counts.bytes += size
                    if not self.pause(size / self.rate):
                        return False
                self.counts.blobs += 1
            except DataLoss as error:
                if error.reason == CORRUPT:  # else it was removed meanwhile
                    self.counts.corrupt += 1
                    self.found(sha256)
            except SealaneError as error:
                self.counts.failed += 1
                log.warning("a blob could not be read", extra={"sha256": sha256, "reason": error.reason})
        self.counts.rounds += 1
        self.counts.finished = self.clock.now()
        return True
