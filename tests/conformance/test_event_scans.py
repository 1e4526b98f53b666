"""Pages of events: the matching ones in order, each once, within all bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansard_server.domain.errors import EventNotFound, SessionNotFound
from hansard_server.domain.records import EventRecord, EventType, HideReason, TurnStatus
from hansard_server.repository.api import EventPage, EventScan, Store
from hansard_server.repository.sql.statements import INLINE_MAX_BYTES
from tests.support.records import (
    SESSION,
    TENANT,
    event,
    session,
    turn,
    with_events,
    with_session,
    with_turns,
)

MANY = 10_000_000
SCAN = EventScan(limit=MANY, max_bytes=MANY, max_rows=MANY)


async def page_of(store: Store, scan: EventScan, session_uid: str = SESSION.uid) -> EventPage:
    return await store.read(lambda tx: tx.scan_events(TENANT, session_uid, scan))


async def all_of(store: Store, scan: EventScan) -> tuple[list[EventRecord], int]:
    """Return the events of all pages, and the number of pages."""
    found: list[EventRecord] = []
    for pages in range(1, 1_000):
        page = await page_of(store, scan)
        found.extend(page.events)
        if page.resume_at is None:
            return found, pages
        if scan.descending:
            scan = replace(scan, before_sequence=page.resume_at)
        else:
            scan = replace(scan, after_sequence=page.resume_at)
    raise AssertionError("The scan does not end.")


def sequences(found: Sequence[EventRecord]) -> list[int]:
    return [record.sequence for record in found]


async def test_event_comes_back_as_it_was_written(store: Store) -> None:
    written = [
        event(1, payload=bytes(range(256)), type=EventType.INPUT_MESSAGE, turn_id="trn_1"),
        event(2, type=EventType.TOOL_INPUT, tool_call_id="call_1"),
        event(3, type=EventType.TOOL_OUTPUT, tool_call_id="call_1"),
        event(4, hide_reason=HideReason.COMPACTION),
        event(5, payload=b"", deleted_at_us=77),
    ]
    await with_session(store)
    await with_events(store, written)

    page = await page_of(store, replace(SCAN, include_hidden=True))

    assert page == EventPage(events=tuple(written), resume_at=None)
    one = await store.read(lambda tx: tx.get_event(TENANT, SESSION.uid, "aev_1"))
    tombstone = await store.read(lambda tx: tx.get_event(TENANT, SESSION.uid, "aev_5"))
    assert [one, tombstone] == [written[0], written[4]]


@pytest.mark.parametrize(
    "name",
    [
        (TENANT, SESSION.uid, "aev_9"),
        (TENANT, "another", "aev_1"),
        ("other", SESSION.uid, "aev_1"),
    ],
)
async def test_event_of_elsewhere_is_not_found(store: Store, name: tuple[str, str, str]) -> None:
    await with_session(store)
    await with_events(store, [event(1)])

    with pytest.raises(EventNotFound):
        await store.read(lambda tx: tx.get_event(*name))


async def test_scan_sees_its_session_alone(store: Store) -> None:
    other = session(2)
    await with_session(store)
    await store.write(lambda tx: tx.insert_session(other, None))
    await with_events(store, [event(1), event(2)])
    await with_events(store, [event(1)], other.uid)

    assert sequences((await page_of(store, SCAN)).events) == [1, 2]
    assert sequences((await page_of(store, SCAN, other.uid)).events) == [1]


async def test_deleted_session_can_not_be_scanned(store: Store) -> None:
    await with_session(store)
    await with_events(store, [event(1)])
    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 9_000))

    with pytest.raises(SessionNotFound):
        await page_of(store, SCAN)
    with pytest.raises(SessionNotFound):
        await page_of(store, SCAN, "never was")


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    ("count", "limit", "pages"), [(0, 3, 1), (1, 3, 1), (2, 3, 1), (3, 3, 1), (4, 3, 2), (7, 3, 3)]
)
async def test_pages_end_where_the_events_end(
    store: Store, *, descending: bool, count: int, limit: int, pages: int
) -> None:
    await with_session(store)
    if count:
        await with_events(store, [event(n) for n in range(1, count + 1)])
    expected = list(range(1, count + 1))

    found, taken = await all_of(store, replace(SCAN, limit=limit, descending=descending))

    assert sequences(found) == (expected[::-1] if descending else expected)
    assert taken == pages


@pytest.mark.parametrize("descending", [False, True])
async def test_bounds_are_exclusive(store: Store, *, descending: bool) -> None:
    await with_session(store)
    await with_events(store, [event(n) for n in range(1, 10)])
    scan = replace(SCAN, after_sequence=3, before_sequence=7, descending=descending, limit=2)

    found, _ = await all_of(store, scan)

    assert sequences(found) == ([6, 5, 4] if descending else [4, 5, 6])
    for after, before in ((9, None), (5, 6), (7, 3), (20, None), (0, 1)):
        nothing = replace(SCAN, after_sequence=after, before_sequence=before)
        assert await page_of(store, nothing) == EventPage(events=(), resume_at=None)


@pytest.mark.parametrize("descending", [False, True])
async def test_page_ends_at_its_bytes_with_at_least_one_event(
    store: Store, *, descending: bool
) -> None:
    inline, large = INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1
    sizes = [10, inline, large, 3 * large, 0, large, inline, 1]
    written = [event(n, payload=bytes([n]) * size) for n, size in enumerate(sizes, 1)]
    await with_session(store)
    await with_events(store, written)

    for max_bytes in (1, inline, large, 2 * large, 4 * large, MANY):
        scan = replace(SCAN, max_bytes=max_bytes, descending=descending)
        found, _ = await all_of(store, scan)
        assert found == (written[::-1] if descending else written)
        page = await page_of(store, scan)
        total = sum(len(record.payload) for record in page.events)
        assert total <= max_bytes or len(page.events) == 1


@pytest.mark.parametrize("descending", [False, True])
async def test_scan_examines_so_many_rows_at_most(store: Store, *, descending: bool) -> None:
    written = [event(n) for n in range(1, 101)]
    written[49] = replace(written[49], type=EventType.THINKING)
    await with_session(store)
    await with_events(store, written)
    scan = replace(SCAN, max_rows=10, types=frozenset({EventType.THINKING}), descending=descending)

    page = await page_of(store, scan)
    found, pages = await all_of(store, scan)

    assert page == EventPage(events=(), resume_at=91 if descending else 10)
    assert sequences(found) == [50]
    assert pages == 10


async def test_hidden_and_deleted_events_come_only_when_asked_for(store: Store) -> None:
    await with_session(store)
    await with_events(
        store,
        [
            event(1),
            event(2, hide_reason=HideReason.MANUAL),
            event(3, payload=b"", deleted_at_us=9),
            event(4),
        ],
    )

    assert sequences((await page_of(store, SCAN)).events) == [1, 4]
    whole = await page_of(store, replace(SCAN, include_hidden=True))
    assert sequences(whole.events) == [1, 2, 3, 4]


async def test_scan_of_a_turn(store: Store) -> None:
    owners = [None, "trn_1", "trn_1", None, "trn_1", None, "trn_2", None, "trn_2"]
    await with_session(store)
    await with_events(store, [event(n, turn_id=owner) for n, owner in enumerate(owners, 1)])
    await with_turns(
        store,
        [
            turn(1, TurnStatus.COMPLETED, first_sequence=2, last_sequence=5),
            turn(2, TurnStatus.RUNNING, first_sequence=7, last_sequence=7),
            turn(3, TurnStatus.QUEUED),
        ],
    )

    async def of_turn(turn_id: str, **changes: Any) -> list[int]:
        scan = replace(SCAN, turn_id=turn_id, limit=2, **changes)
        return sequences((await all_of(store, scan))[0])

    assert await of_turn("trn_1") == [2, 3, 5]
    assert await of_turn("trn_1", descending=True) == [5, 3, 2]
    assert await of_turn("trn_1", after_sequence=2) == [3, 5]
    assert await of_turn("trn_2") == [7, 9]
    assert await of_turn("trn_3") == []
    assert await of_turn("trn_none") == []


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_scan_gives_what_a_filter_of_the_whole_gives(
    scanned: tuple[Store, list[EventRecord]], data: st.DataObject
) -> None:
    store, written = scanned
    bound = st.none() | st.integers(0, 31).map(lambda step: step * 20)  # on a time, or between two
    scan = data.draw(
        st.builds(
            EventScan,
            limit=st.integers(1, 70),
            max_bytes=st.integers(1, 1_000),
            max_rows=st.integers(5, 80),
            after_sequence=st.integers(0, 62),
            before_sequence=st.none() | st.integers(1, 62),
            descending=st.booleans(),
            types=st.frozensets(st.sampled_from(KINDS)),
            include_hidden=st.booleans(),
            created_from_us=bound,
            created_before_us=bound,
        )
    )

    found, _ = await all_of(store, scan)

    expected = [record for record in written if matches(record, scan)]
    assert found == (expected[::-1] if scan.descending else expected)


KINDS = [EventType.AGENT_OUTPUT, EventType.THINKING, EventType.CUSTOM]


@pytest.fixture
async def scanned(store: Store) -> tuple[Store, list[EventRecord]]:
    """Give a store with 60 events, among them equal times, hidden ones and tombstones."""
    written = [
        event(
            n,
            type=KINDS[n % 3],
            created_at_us=n // 4 * 40,
            payload=b"x" * (n * 7 % 50),
            hide_reason=HideReason.MANUAL if n % 11 == 0 else HideReason.NONE,
            deleted_at_us=9 if n % 13 == 0 else None,
        )
        for n in range(1, 61)
    ]
    await with_session(store)
    await with_events(store, written)
    return store, written


def matches(record: EventRecord, scan: EventScan) -> bool:
    hidden = record.hide_reason != HideReason.NONE or record.deleted_at_us is not None
    return (
        scan.after_sequence < record.sequence
        and (scan.before_sequence is None or record.sequence < scan.before_sequence)
        and (not scan.types or record.type in scan.types)
        and (scan.include_hidden or not hidden)
        and (scan.created_from_us is None or record.created_at_us >= scan.created_from_us)
        and (scan.created_before_us is None or record.created_at_us < scan.created_before_us)
    )
