"""A cursor that has read the store ahead of its feed."""

from __future__ import annotations

from typing import Any

import pytest

from hansard_server.agents.api import TextKind
from hansard_server.domain.records import EventRecord, EventType
from hansard_server.repository.api import Change, EventPage
from hansard_server.turns.feeds import OpenText, SessionFeed, StoredEvent
from hansard_server.turns.payloads import text_payload
from hansard_server.turns.readers import Cursor, Item, TextShown, TextVoided

SESSION = ("t", "s")


def event(sequence: int, kind: TextKind) -> EventRecord:
    payload = text_payload(kind, f"Text {sequence}", b"", partial=False)
    return EventRecord(
        id=f"aev_{sequence}",
        sequence=sequence,
        type=EventType.THINKING if kind is TextKind.THINKING else EventType.AGENT_OUTPUT,
        turn_id="trn_1",
        created_at_us=1,
        payload=payload.SerializeToString(),
    )


THOUGHT, ANSWER = event(1, TextKind.THINKING), event(2, TextKind.OUTPUT)


class Store:
    """Has both texts, and is its own transaction."""

    async def read(self, work: Any) -> Any:
        return work(self)

    def last_sequence(self, *_: Any) -> int:
        return ANSWER.sequence

    def scan_events(self, *_: Any, **__: Any) -> EventPage:
        return EventPage(events=(THOUGHT, ANSWER), resume_at=None)


@pytest.mark.parametrize("open_event", [THOUGHT, ANSWER])
async def test_delivered_texts_are_not_open(open_event: EventRecord) -> None:
    feed = SessionFeed()
    text = OpenText("trn_1", open_event.id, TextKind.THINKING, bytearray(b"Te"))
    feed.text = text
    store: Any = Store()
    cursor = Cursor(store, feed, SESSION, sequence=0, deltas=True)
    assert cursor.open_text() == [TextShown(open_event.id, text.kind, 0, "Te")]
    read = [item async for item in cursor.stored()]
    assert _events(read) == [THOUGHT, ANSWER]
    assert cursor.open_text() == []
    feed.apply(Change(tenant="t", session_uid="s", events=(THOUGHT, ANSWER)))
    assert cursor.take() == cursor.open_text() == []
    # What is made after that is shown again.
    feed.text = OpenText("trn_1", "aev_3", TextKind.OUTPUT, bytearray(b"More"))
    assert cursor.open_text()[-1] == TextShown("aev_3", TextKind.OUTPUT, 0, "More")


async def test_text_that_a_slow_reader_was_shown_for_nothing() -> None:
    feed = SessionFeed()
    store: Any = Store()
    cursor = Cursor(store, feed, SESSION, sequence=0, deltas=True)
    cursor.live = True
    feed.text = OpenText("trn_1", "aev_0", TextKind.OUTPUT, bytearray(b"Te"))
    assert cursor.open_text() == [TextShown("aev_0", TextKind.OUTPUT, 0, "Te")]
    # While it takes nothing the model is asked again, and has said all.
    feed.text = None
    feed.apply(Change(tenant="t", session_uid="s", events=(THOUGHT, ANSWER)))
    assert cursor.take() == [
        TextVoided("aev_0"),
        TextShown(THOUGHT.id, TextKind.THINKING, 0, "Text 1"),
        StoredEvent(THOUGHT),
        TextShown(ANSWER.id, TextKind.OUTPUT, 0, "Text 2"),
        StoredEvent(ANSWER),
    ]


def _events(items: list[Item]) -> list[EventRecord]:
    return [item.event for item in items if isinstance(item, StoredEvent)]
