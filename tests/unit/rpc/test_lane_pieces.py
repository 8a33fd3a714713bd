"""The rules of a lane that both its ends follow: turns, credit, what is kept for a break, what is joined."""

from __future__ import annotations

import pytest

from sealane.errors import InvalidArgument
from sealane.rpc import lane, lane_inbox
from sealane.rpc.lane import (
    CHUNK_BYTES,
    LANE_BYTES,
    MAX_PAYLOAD_BYTES,
    WINDOW_BYTES,
    Cancel,
    Credit,
    Outbox,
    Piece,
)
from sealane.rpc.lane_inbox import Inbox

BIG = bytes(10 * CHUNK_BYTES + 5)


def told(outbox: Outbox[str], now: float = 0.0) -> list[tuple[int, int, int]]:
    """Call, start and end of each piece of the next message."""
    return [(p.parcel.call_id, p.start, p.end) for p in outbox.batch(now) if isinstance(p, Piece)]


def drained(outbox: Outbox[str]) -> list[tuple[int, int, int]]:
    """All pieces, with as much credit as is wanted."""
    pieces: list[tuple[int, int, int]] = []
    while outbox.ready:
        now = told(outbox)
        pieces += now
        for call_id, _, _ in now:
            outbox.grant(call_id, CHUNK_BYTES)
    return pieces


def test_small_ones_travel_together_and_in_order() -> None:
    outbox: Outbox[str] = Outbox()
    for number in range(100):
        outbox.add(number, "call", b"x" * 10)
    assert [call for call, _, _ in told(outbox)] == list(range(64))
    assert [call for call, _, _ in told(outbox)] == list(range(64, 100))
    assert not outbox.ready
    assert outbox.unsent_bytes == 0


def test_a_large_one_is_cut_and_small_ones_pass_it() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.add(1, "large", BIG)
    outbox.add(2, "small", b"s")
    assert told(outbox) == [(2, 0, 1), (1, 0, CHUNK_BYTES)]
    outbox.add(3, "small", b"s")
    assert told(outbox) == [(3, 0, 1), (1, CHUNK_BYTES, 2 * CHUNK_BYTES)]
    rest = drained(outbox)
    assert rest[-1] == (1, 10 * CHUNK_BYTES, len(BIG))


def test_large_ones_take_turns() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.add(1, "large", BIG)
    outbox.add(2, "large", BIG)
    assert [told(outbox)[0][0] for _ in range(4)] == [1, 2, 1, 2]


def test_no_more_is_under_way_than_the_receiver_asked_for() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.add(1, "large", BIG)
    sent = 0
    while outbox.ready:
        ((_, _, sent),) = told(outbox)
    assert sent == WINDOW_BYTES
    outbox.grant(1, 100)
    assert told(outbox) == [(1, WINDOW_BYTES, WINDOW_BYTES + 100)]
    assert not outbox.ready
    outbox.grant(7, 100)  # of a call that is over


def test_what_is_dropped_is_sent_no_further() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.add(1, "large", BIG)
    told(outbox)
    assert not outbox.waits(1)
    assert outbox.drop(1)
    outbox.add(2, "small", b"s")
    assert outbox.waits(2)
    assert not outbox.drop(2), "the receiver never heard of it"
    assert not outbox.ready
    assert outbox.unsent_bytes == 0


def test_what_is_overdue_is_never_begun() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.add(1, "late", b"s", deadline=5.0)
    outbox.add(2, "in time", b"s", deadline=7.0)
    outbox.add(3, "late", BIG, deadline=5.0)
    assert told(outbox, now=6.0) == [(2, 0, 1)]
    assert not outbox.ready
    assert outbox.unsent_bytes == 0


def test_after_a_break_only_what_is_missing_is_sent_again_and_first() -> None:
    outbox: Outbox[str] = Outbox()
    for number in range(5):
        outbox.add(number, "call", b"x")
    outbox.add(9, "large", BIG)
    outbox.cancel(77)
    sent = outbox.batch(0.0)
    assert isinstance(sent[0], Cancel)
    outbox.add(6, "new", b"y")
    assert outbox.resume(3)  # the cancel and two calls arrived
    again = []
    while len(again) < 4:
        again += told(outbox)
    assert again == [(2, 0, 1), (3, 0, 1), (4, 0, 1), (9, 0, CHUNK_BYTES)]
    assert told(outbox) == [(6, 0, 1), (9, CHUNK_BYTES, 2 * CHUNK_BYTES)]
    assert outbox.resume(8)
    assert told(outbox) == [(9, CHUNK_BYTES, 2 * CHUNK_BYTES)], "a second break begins where the first was healed"


def test_what_is_acknowledged_is_not_kept() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.add(1, "call", b"x" * 100)
    outbox.batch(0.0)
    assert outbox.kept_bytes == 100
    outbox.acknowledge(1)
    assert outbox.kept_bytes == 0
    assert outbox.resume(1)
    assert not outbox.ready
    assert not outbox.resume(0), "a receiver cannot have fewer than it said it had"
    assert not outbox.resume(5), "nor more than were sent"


def test_beyond_the_bound_the_oldest_payloads_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "LANE_BYTES", 1000)
    outbox: Outbox[str] = Outbox()
    for number in range(15):
        outbox.add(number, "reply", b"x" * 100)
        outbox.batch(0.0)
    assert outbox.kept_bytes <= 1000
    assert outbox.resume(0)
    again: list[Piece[str]] = []
    while outbox.ready:
        again += [piece for piece in outbox.batch(0.0) if isinstance(piece, Piece)]
    assert [piece.parcel.lost for piece in again] == [True] * 5 + [False] * 10
    assert [piece.data for piece in again] == [b""] * 5 + [b"x" * 100] * 10
    outbox.acknowledge(15)
    assert outbox.kept_bytes == 0


def test_a_receiver_that_acknowledges_nothing_does_not_fill_the_memory() -> None:
    outbox: Outbox[str] = Outbox()
    for number in range(2 * lane.KEPT_FRAMES):
        outbox.add(number, "call", b"")
        outbox.batch(0.0)
    assert not outbox.resume(0)
    outbox.add(1, "huge", bytes(LANE_BYTES + 1))
    assert outbox.full


def test_pieces_are_joined_and_asked_for() -> None:
    inbox: Inbox[str] = Inbox()
    size = 3 * WINDOW_BYTES + 7
    chunk = bytes(CHUNK_BYTES)
    inbox.begin(1, "call", size, chunk)
    got, asked, whole = CHUNK_BYTES, WINDOW_BYTES, None
    while whole is None:
        piece = chunk[: size - got]
        got += len(piece)
        whole = inbox.add(1, piece)
        credits = inbox.credits()
        asked += sum(credit.size for credit in credits)
        assert asked - got <= WINDOW_BYTES
        assert whole is not None or asked > got, "it always goes on"
    assert whole == ("call", bytes(size))
    assert not inbox.joining
    assert inbox.add(1, b"late") is None


def test_more_payloads_than_there_is_room_for_come_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_inbox, "JOINING_BYTES", 2 * WINDOW_BYTES)
    inbox: Inbox[str] = Inbox()
    size = 8 * WINDOW_BYTES
    for call_id in (1, 2, 3):
        inbox.begin(call_id, "call", size, bytes(WINDOW_BYTES))
    assert {credit.call_id for credit in inbox.credits()} == {1}
    got = WINDOW_BYTES
    while inbox.add(1, bytes(CHUNK_BYTES)) is None:
        got += CHUNK_BYTES
        assert {credit.call_id for credit in inbox.credits()} <= {1}
    assert [credit.call_id for credit in inbox.credits()] == [2], "the next one has its turn"
    assert inbox.drop(2)
    assert not inbox.drop(2)
    assert 3 in {credit.call_id for credit in inbox.credits()}


def test_an_end_that_sends_what_it_may_not_is_found_out() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.begin(1, "call", 2 * WINDOW_BYTES, bytes(WINDOW_BYTES))
    with pytest.raises(InvalidArgument):
        inbox.add(1, b"beyond the credit")
    for size, first in ((10, bytes(11)), (MAX_PAYLOAD_BYTES + 1, b"x"), (-5, b"")):
        with pytest.raises(InvalidArgument):
            inbox.begin(2, "call", size, first)
    with pytest.raises(InvalidArgument):
        inbox.begin(1, "again", 100, b"x")


def test_what_came_is_told_at_the_latest_after_so_much() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.count(lane_inbox.ACKNOWLEDGE_FRAMES - 1, 0)
    assert not inbox.acknowledgement_due
    inbox.count(1, 0)
    assert inbox.acknowledgement_due
    assert inbox.acknowledge() == lane_inbox.ACKNOWLEDGE_FRAMES
    assert not inbox.acknowledgement_due
    inbox.count(1, lane_inbox.ACKNOWLEDGE_BYTES)
    assert inbox.acknowledgement_due


def test_credit_travels_before_payloads() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.add(1, "call", b"x")
    outbox.credit(2, 50)
    batch = outbox.batch(0.0)
    assert isinstance(batch[0], Credit)
    assert (batch[0].call_id, batch[0].size) == (2, 50)


def test_a_lone_call_is_never_held_up() -> None:
    pace = lane.Pace()
    assert [pace.pause(at / 1e4, 1) for at in range(100)] == [0.0] * 100


def test_under_load_messages_are_spaced_after_the_first_few() -> None:
    pace, now, sent = lane.Pace(), 10.0, 0
    pauses = []
    while now < 10.5:
        pauses.append(pace.pause(now, 32))
        now += pauses[-1]
        sent += 1
    assert pauses[0] == 0.0
    assert max(pauses) <= lane.LONGEST_SPACING + 1e-9
    assert sent <= 0.5 / lane.LONGEST_SPACING + lane.BURST_SECONDS / lane.LONGEST_SPACING + 2
