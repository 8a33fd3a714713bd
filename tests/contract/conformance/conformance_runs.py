"""The runs of the matrix's clients: each once for each place."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import conformance_matrix as matrix
from conformance_matrix import PLACES, PROGRAMS, SCRIPTS, Client
from conformance_site import LightSite, place_of


class Runs:
    """Runs every client that is asked for: beside each other at the two places, one after the other at each."""

    def __init__(self, site: LightSite, folder: Path, wanted: set[tuple[str, str]]) -> None:
        self._site, self._folder = site, folder
        self._pools = {place: ThreadPoolExecutor(1) for place in PLACES}
        self._runs: dict[tuple[str, str], Future[dict[str, str]]] = {
            (client.id, place): self._pools[place].submit(self._run, client, place)
            for client in matrix.CLIENTS
            for place in PLACES
            if (client.id, place) in wanted and not client.missing
        }

    @property
    def asked(self) -> set[tuple[str, str]]:
        """Clients and places that this session runs."""
        return set(self._runs)

    def outcome(self, client: Client, place: str, row: str) -> str:
        """What came of a row."""
        return self._runs[client.id, place].result(timeout=500).get(row, "the script gave no answer for it")

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)

    def results(self) -> dict[str, object]:
        """The day, and client -> place -> row -> outcome of those that were run to their end."""
        found: dict[str, dict[str, dict[str, str]]] = {}
        for (client, place), run in self._runs.items():
            if run.done() and not run.cancelled() and run.exception() is None:
                found.setdefault(client, {})[place] = run.result()
        return {"date": datetime.date.today().isoformat(), "cells": found}

    def _run(self, client: Client, place: str) -> dict[str, str]:
        names = [name for name in matrix.rows()[client.family] if not matrix.not_applicable(client, name, place)]
        if not names:
            return {}
        file = self._folder / f"{client.id}-{place}.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(place_of(self._site, place, self._folder)))
        command = [str(client.python), str(SCRIPTS / client.script), str(file), *client.arguments, *names]
        environment = {**os.environ, **{name: str(path) for name, path in PROGRAMS.items()}}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            return dict.fromkeys(names, f"exit status {done.returncode}: {done.stderr[-800:]}")
        outcomes: dict[str, str] = json.loads(lines[-1])
        return outcomes
