"""What services keep of revocations stays bounded, in memory and on disk, and a torn file stops no start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sealane.clock import ManualClock
from sealane.errors import Unauthenticated, Unavailable
from sealane.rpc.call import Identity
from sealane.security.keys import KeySet, Published
from sealane.security.revocations import KEPT_SECONDS, Kind, Revocations, Revoked

CALLER = Identity("projects/p/serviceAccounts/a", "p", token_id="t", key_id="k", epoch=1)
TOKEN, SUBJECT = Revoked(Kind.TOKEN, "t", "p"), Revoked(Kind.SUBJECT, CALLER.subject, number=2)
LASTING = (Revoked(Kind.KEY, "k"), Revoked(Kind.PEER, "x", number=1.0), Revoked(Kind.ISSUER, "aa"))


def on_disk(path: Path) -> set[str]:
    return {row["value"] for row in json.loads(path.read_text())["revoked"]}


@pytest.mark.parametrize("restart", [False, True])
def test_tokens_and_subjects_are_forgotten_when_no_token_can_be_meant(tmp_path: Path, restart: bool) -> None:
    clock, path = ManualClock(), tmp_path / "revocations.json"
    known = Revocations(clock, path)
    known.take(5, [TOKEN, SUBJECT, *LASTING], snapshot=True)
    if restart:
        known = Revocations(clock, path)
    clock.advance(KEPT_SECONDS)
    known.take(5, [])
    assert known.has(TOKEN) and known.has(SUBJECT), "not a second too early"
    clock.advance(61)
    known.take(5, [])
    assert not known.has(TOKEN) and not known.has(SUBJECT)
    assert all(known.has(each) for each in LASTING)
    assert on_disk(path) == {"k", "x", "aa"}


def test_an_epoch_that_moves_on_is_kept_from_then_on() -> None:
    clock = ManualClock()
    known = Revocations(clock)
    known.take(1, [SUBJECT])
    clock.advance(KEPT_SECONDS - 1)
    known.take(2, [Revoked(Kind.SUBJECT, CALLER.subject, number=3)])
    clock.advance(100)
    known.take(2, [])
    with pytest.raises(Unauthenticated):
        known.check(CALLER)


def test_a_burst_is_written_once_and_the_rest_with_the_next_word(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "revocations.json"
    known = Revocations(clock, path)
    known.take(1, [Revoked(Kind.TOKEN, "first", "p")])
    for number in range(2, 50):
        known.take(number, [Revoked(Kind.TOKEN, str(number), "p")])
        assert known.has(Revoked(Kind.TOKEN, str(number), "p")), "in force at once"
    assert on_disk(path) == {"first"}
    clock.advance(5)
    known.take(49, [])
    assert len(on_disk(path)) == 49


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sequence": 1, "revoked": [{"kind": "new"}]}', "\x00" * 20])
def test_a_torn_file_counts_as_absent(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    known = Revocations(ManualClock(), path)
    assert known.sequence == 0, "so that auth sends all"
    known.take(3, [TOKEN])
    assert on_disk(path) == {"t"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"k": 7}', '{"k": "AAAA"}', '{"k": "\u00e9"}'])
def test_a_torn_key_file_counts_as_absent(tmp_path: Path, content: str) -> None:
    def fetch() -> Published:
        raise Unavailable("auth is away")

    path = tmp_path / "jwks.json"
    path.write_text(content)
    assert KeySet(fetch, path).known() == ()
