"""What a running turn reads of its session: the newest, what is new, and all again when altered."""

from __future__ import annotations

import pytest

from hansard.v1 import event_pb2
from hansard_server.agents.api import Reach, Recent
from hansard_server.domain.records import EventType, HideReason
from hansard_server.repository.api import Alteration, EventScan
from hansard_server.repository.commands import Draft
from hansard_server.repository.sql.store import SqlStore
from hansard_server.turns.feeds import Feeds
from hansard_server.turns.payloads import make_draft
from hansard_server.turns.record import RecordReader
from tests.support.commands import accept, append, finish, step
from tests.support.records import SESSION, TENANT, with_session

FAR = Reach(max_bytes=1_000_000)


def said(text: str, event_id: str | None = None) -> Draft:
    payload = event_pb2.Event(agent_output=event_pb2.AgentOutput(content=text))
    return make_draft(payload, event_id=event_id)


def asked(text: str) -> Draft:
    event = event_pb2.Event()
    event.input_message.messages.add().text.content = text
    return make_draft(event)


def sequences(recent: Recent) -> list[int]:
    return [event.sequence for event in recent.events]


async def test_it_reads_on_and_begins_anew_when_something_was_altered(store: SqlStore) -> None:
    await with_session(store)
    await store.submit(append(*(said(f"{n}", f"aev_{n}") for n in range(1, 4))))
    turn = (await store.submit(accept(input=asked("Well?")))).turn
    reader = RecordReader(store, turn)
    assert sequences(await reader.recent(FAR)) == [1, 2, 3, 4]
    assert reader.read_sequence == 4
    await store.submit(step(turn, said("a"), said("b")))
    assert sequences(await reader.recent(FAR)) == [1, 2, 3, 4, 5, 6]
    await store.write(lambda tx: tx.alter_event(TENANT, SESSION.uid, "aev_2", Alteration.HIDE, 9))
    await store.submit(step(turn, said("c")))
    recent = await reader.recent(FAR)
    assert sequences(recent) == [1, 3, 4, 5, 6, 7]
    assert recent.whole
    await store.write(lambda tx: tx.alter_event(TENANT, SESSION.uid, "aev_1", Alteration.DELETE, 9))
    assert sequences(await reader.recent(FAR)) == [3, 4, 5, 6, 7]


async def test_it_reads_as_far_as_is_wanted_and_the_newest_input(store: SqlStore) -> None:
    await with_session(store)
    turn = (await store.submit(accept(input=asked("First?")))).turn
    await store.submit(finish(turn))
    for _ in range(4):
        await store.submit(append(*(said("x" * 1_000) for _ in range(100))))
    later = (await store.submit(accept(input=asked("Well?")))).turn
    await store.submit(step(later, *(said("x" * 1_000) for _ in range(20))))
    reader = RecordReader(store, later)
    some = await reader.recent(Reach(max_bytes=10_500))
    assert sequences(some) == [402, *range(412, 423)]
    assert not some.whole
    own = await reader.recent(Reach(max_bytes=1_000_000, turn_only=True))
    assert sequences(own) == list(range(402, 423))
    assert not own.whole
    every = await reader.recent(FAR)
    assert sequences(every) == list(range(1, 423))
    assert every.whole
    past = await reader.past(through=410, max_events=300, max_bytes=10**9)
    assert (sequences(past), past.whole) == (list(range(1, 301)), False)
    past = await reader.past(through=410, max_events=1_000, max_bytes=10**9)
    assert (sequences(past), past.whole) == (list(range(1, 402)), True)


@pytest.mark.parametrize("before", [0, 3])
async def test_what_this_process_has_written_is_not_read_again(
    store: SqlStore, before: int
) -> None:
    await with_session(store)
    feeds = Feeds()
    own = Reach(max_bytes=1_000_000, turn_only=True)
    with store.listen(feeds.on_change), feeds.use(TENANT, SESSION.uid) as feed:
        if before:
            await store.submit(append(*(said(f"{n}") for n in range(before))))
        turn = (await store.submit(accept(input=asked("Well?")))).turn
        reader, plain = RecordReader(store, turn, feed), RecordReader(store, turn)

        async def compare() -> None:
            at_hand = reader.at_hand(own)
            assert at_hand == await plain.stored(own)
            assert reader.read_sequence == plain.read_sequence

        await compare()
        for number in range(3):
            await store.submit(step(turn, said(f"a{number}"), said(f"b{number}")))
            await compare()
        # What is larger than is wanted, or asked of the whole session, is read.
        assert reader.at_hand(Reach(max_bytes=10, turn_only=True)) is None
        assert reader.at_hand(FAR) is None
        # And so is what others write meanwhile.
        custom = event_pb2.Event(custom=event_pb2.Custom(custom_type="a.b", data_json="1"))
        await store.submit(append(make_draft(custom)))
        assert reader.at_hand(own) is None
        assert await reader.recent(own) == await plain.stored(own)
        assert reader.read_sequence == plain.read_sequence


async def test_a_feed_that_has_forgotten_is_not_asked(store: SqlStore) -> None:
    await with_session(store)
    feeds = Feeds()
    own = Reach(max_bytes=1_000_000, turn_only=True)
    turn = (await store.submit(accept(input=asked("Well?")))).turn
    with store.listen(feeds.on_change), feeds.use(TENANT, SESSION.uid) as feed:
        reader = RecordReader(store, turn, feed)
        assert reader.at_hand(own) is None
        await store.submit(step(turn, said("a")))
        # It knows of the second event only.
        assert reader.at_hand(own) is None
        assert sequences(await reader.recent(own)) == [1, 2]


async def test_a_compaction_hides_in_its_own_transaction(store: SqlStore) -> None:
    await with_session(store)
    await store.submit(append(*(said(f"{n}") for n in range(1, 6))))
    turn = (await store.submit(accept(input=asked("Well?")))).turn
    summary = event_pb2.Event(compaction=event_pb2.Compaction(summary_text="s"))
    made = make_draft(summary)
    hiding = Draft(id=made.id, type=EventType.COMPACTION, payload=made.payload, hides=(1, 2, 4))
    await store.submit(step(turn, hiding))
    reader = RecordReader(store, turn)
    assert sequences(await reader.recent(FAR)) == [3, 5, 6, 7]
    found = await store.read(lambda tx: tx.find_altered(TENANT, SESSION.uid, 0, 10))
    assert [number for number, _ in found] == [1, 2, 3]
    ids = {event_id for _, event_id in found}
    scan = EventScan(limit=10, max_bytes=10_000, max_rows=10, include_hidden=True)
    page = await store.read(lambda tx: tx.scan_events(TENANT, SESSION.uid, scan))
    events = [event for event in page.events if event.id in ids]
    assert [event.sequence for event in events] == [1, 2, 4]
    assert {event.hide_reason for event in events} == {HideReason.COMPACTION}
