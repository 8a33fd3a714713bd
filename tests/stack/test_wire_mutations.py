"""Mutated requests of every type against the real services: never a bug of ours, never a word about our insides.

300 a type here, 3,000 with LONG=1; tests/unit/rpc/test_mutations.py does 100,000 in process.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from light_site import LightSite, running
from test_malformed import BOUND, BUGS, CLIENT_DOORS, Door, name_of, token_for

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from mutations import filled, mutated

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]
MUTATIONS = 3000 if os.environ.get("LONG") else 300
INSIDES = re.compile(r"Traceback|/src/|site-packages|\.py\b|<class|DecodeError|_pb2|sqlite|sqlalchemy", re.IGNORECASE)
UNARY = [door for door in CLIENT_DOORS if not (door.method.client_streaming or door.method.server_streaming)]


@pytest.fixture(scope="module")
def mutable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A suite of its own: some of the requests succeed."""
    with running(tmp_path_factory.mktemp("mutated")) as site:
        site.deploy_cameras(site.push())
        yield site


@pytest.fixture(scope="module")
def channels(mutable: LightSite) -> Iterator[dict[str, grpc.Channel]]:
    channels = {place: mutable.channel(place) for place in BOUND}
    yield channels
    for channel in channels.values():
        channel.close()


@pytest.mark.parametrize("door", UNARY, ids=name_of)
def test_mutated_requests_never_find_a_bug(mutable: LightSite, channels: dict[str, grpc.Channel], door: Door) -> None:
    dice = random.Random(name_of(door))
    method = channels[door.place].unary_unary(door.method.path)
    seeds = [b"", *(filled(door.method.request(), dice).SerializeToString() for _ in range(20))]
    for start in range(0, MUTATIONS, 50):
        metadata = (("authorization", f"Bearer {token_for(mutable, door)}"),)
        bodies = [mutated(dice.choice(seeds), dice) for _ in range(min(50, MUTATIONS - start))]
        waiting = [method.future(body, timeout=5, metadata=metadata) for body in bodies]
        for body, answer in zip(bodies, waiting, strict=True):
            assert answer.code() not in BUGS, (answer.code(), answer.details(), body)
            shown = f"{answer.details()} {answer.trailing_metadata()}"
            assert not INSIDES.search(shown), (shown, body)
