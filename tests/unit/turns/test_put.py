"""What a recorder is given without waiting comes to what it comes to with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import event_pb2
from hansard_server.agents.api import TextKind
from hansard_server.domain.records import EventType, TurnRecord, TurnStatus
from hansard_server.repository.commands import RecordStep
from hansard_server.turns.feeds import SessionFeed
from hansard_server.turns.recorder import Recorder

MAX_BYTES = 8
TURN = TurnRecord(
    tenant="t",
    session_uid="s",
    id="trn_1",
    number=1,
    status=TurnStatus.RUNNING,
    input_type=EventType.INPUT_MESSAGE,
    input_event_id="aev_1",
    input=b"",
    first_sequence=1,
    last_sequence=1,
    fence=1,
    attempt=1,
    created_at_us=1,
)
# A text of so many bytes, the end of the open one, or a pause of the model.
STEPS = st.lists(
    st.one_of(st.text("aä中🙂", min_size=1, max_size=12), st.sampled_from(["END", "PAUSE"])),
    max_size=30,
)


class Store:
    """Keeps what is written, and what readers had been shown before."""

    def __init__(self, feed: SessionFeed) -> None:
        self.feed = feed
        self.ids: list[str] = []
        self.contents: list[str] = []

    async def submit(self, step: RecordStep) -> None:
        await asyncio.sleep(0)
        for draft in step.drafts:
            self.ids.append(draft.id)
            self.contents.append(content(draft.payload))
            if self.feed.text is not None and self.feed.text.event_id == draft.id:
                self.feed.text = None


def content(payload: bytes) -> str:
    return event_pb2.Event.FromString(payload).agent_output.content


async def play(steps: Sequence[str], *, fast: bool) -> list[str]:
    """Return the events that the steps come to; check what readers see on the way."""
    feed = SessionFeed()
    store: Any = Store(feed)
    recorder = Recorder(store, feed, TURN, text_max_bytes=MAX_BYTES)
    for step in steps:
        if step == "END":
            recorder.end_text()
        elif step == "PAUSE":
            if recorder.holding:
                await recorder.flush()
            assert not recorder.holding
        elif not (fast and recorder.put(TextKind.OUTPUT, step)):
            await recorder.show(TextKind.OUTPUT, step)
        # A text is seen when all before it is on disk, and what is seen is the recorder's.
        if feed.text is not None and feed.text is recorder._text:
            assert not recorder.waiting
        if not recorder.waiting:
            assert recorder._text is None or feed.text is recorder._text
    recorder.end_text()
    drafts, _ = recorder.take()
    assert len(set(store.ids)) == len(store.ids)
    return [*store.contents, *(content(draft.payload) for draft in drafts)]


@given(STEPS)
def test_put_records_what_show_records(steps: Sequence[str]) -> None:
    plain = asyncio.run(play(steps, fast=False))
    fast = asyncio.run(play(steps, fast=True))
    assert fast == plain


@given(st.lists(st.text("aä中", min_size=1, max_size=2), min_size=1, max_size=60))
def test_only_so_many_events_are_held(texts: Sequence[str]) -> None:
    async def run() -> None:
        feed = SessionFeed()
        store: Any = Store(feed)
        recorder = Recorder(store, feed, TURN, text_max_bytes=MAX_BYTES)
        for text in texts:
            if not recorder.put(TextKind.OUTPUT, text):
                await recorder.show(TextKind.OUTPUT, text)
            recorder.end_text()
            drafts, usage = recorder.take()
            assert len(drafts) <= 17
            recorder.put_back(drafts, usage)

    asyncio.run(run())
