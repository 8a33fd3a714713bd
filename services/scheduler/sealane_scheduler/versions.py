"""Keeps what deployments know of their versions in line with the registry: signatures, policies and variants change."""

from __future__ import annotations

import asyncio
import logging

from sealane.errors import NotFound, SealaneError
from sealane_scheduler.controller import Controller
from sealane_scheduler.registry_port import RegistryPort

log = logging.getLogger("sealane.versions")

#: How often a version is read again of which a deployment waits for a variant that may be loaded.
HELD_SECONDS = 1.0
#: The same for all others: a key that the project no longer trusts.
ALL_SECONDS = 30.0


class Versions:
    """Reads the versions of deployments again and again."""

    def __init__(self, controller: Controller, registry: RegistryPort) -> None:
        self._controller = controller
        self._registry = registry

    async def run(self) -> None:
        """Read until cancelled."""
        rounds = 0
        while True:
            await asyncio.sleep(HELD_SECONDS)
            rounds += 1
            await self.step(held_only=rounds % round(ALL_SECONDS / HELD_SECONDS) != 0)

    async def step(self, *, held_only: bool) -> None:
        """Read once: those that are held back by a policy, or all."""
        names = {
            item.row.model_version
            for item in self._controller.all()
            if not held_only or (item.refusal is not None and any(variant.blocked for variant in item.variants))
        }
        for name in sorted(names):
            try:
                await self._controller.refresh(await asyncio.to_thread(self._registry.version, name))
            except NotFound:
                continue  # deleted while nobody could say that it is in use: what is placed goes on serving
            except SealaneError as error:
                log.warning("versions are not read again, trying later", extra={"reason": error.reason})
                return
