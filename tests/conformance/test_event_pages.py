"""A page made of rows is, byte for byte, what its events are that were made objects first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansard.v1 import event_pb2, event_service_pb2
from hansard_server.domain.records import EventRecord, EventRow, EventType, HideReason
from hansard_server.repository.api import EventScan, ReadTx, Store
from hansard_server.repository.commands import SessionName
from hansard_server.repository.sql.statements import INLINE_MAX_BYTES
from hansard_server.servicers.event_pages import encode_event_rows, encode_next_page_token
from hansard_server.turns.payloads import encode_event
from tests.support.records import AGENT, SESSION, TENANT, with_events, with_session

NAME = SessionName(tenant=TENANT, agent_key=AGENT.key, session_key=SESSION.key, uid=None)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
# Around every number of bytes that a varint may have.
EDGES = [1 << bits for bits in (0, 7, 14, 21, 28, 31, 35, 42)]
NUMBERS = st.sampled_from(EDGES).flatmap(lambda edge: st.integers(edge - 1, edge + 1))
TIMES_US = st.builds(
    lambda second, us: second * 1_000_000 + us,
    NUMBERS | st.integers(0, 2**33),
    st.sampled_from([0, 1, 16, 17, 268_435, 268_436, 999_999]) | st.integers(0, 999_999),
)
PAYLOADS = (
    st.text(max_size=200).map(
        lambda text: event_pb2.Event(
            agent_output=event_pb2.AgentOutput(content=text)
        ).SerializeToString()
    )
    | st.sampled_from([b"", b"\x00", b"\xc3\x28\x00\xff"])
    | st.sampled_from([127, 128, 16_300, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1]).map(bytes)
)
EVENTS = st.builds(
    EventRecord,
    id=st.just("aev_1") | TEXTS.map("aev_{}".format),
    sequence=NUMBERS.filter(bool),
    type=st.sampled_from(EventType),
    turn_id=st.none() | st.sampled_from(["trn_1", "trn_2"]) | TEXTS,
    created_at_us=TIMES_US,
    payload=PAYLOADS,
    tool_call_id=st.none() | TEXTS,
    hide_reason=st.just(HideReason.NONE) | st.sampled_from(HideReason),
    deleted_at_us=st.none() | TIMES_US,
)
KEYS = st.sampled_from(["support", "", "k" * 130]) | TEXTS


def page_of(events: Sequence[EventRecord], token: str, agent_key: str, session_key: str) -> bytes:
    """Return the page as the messages' own code makes it, around what each event is elsewhere."""
    page = event_service_pb2.ListEventsResponse(next_page_token=token)
    tail = page.SerializeToString()
    whole = b""
    for event in events:
        data = encode_event(event, agent_key, session_key)
        # Any message that has bytes as its field 1: they are on the wire as a message's are.
        assert page.DESCRIPTOR.fields_by_name["events"].number == 1
        whole += event_pb2.Event(id="x" * len(data)).SerializeToString()[: -len(data) or None]
        whole += data
    return whole + tail


def row_of(event: EventRecord) -> EventRow:
    return (
        event.sequence,
        event.id,
        int(event.type),
        event.turn_id,
        event.created_at_us,
        int(event.hide_reason),
        event.deleted_at_us,
        event.tool_call_id,
        len(event.payload),
        event.payload,
    )


@settings(max_examples=300)
@given(events=st.lists(EVENTS, max_size=6), token=TEXTS, agent_key=KEYS, session_key=KEYS)
def test_rows_become_what_events_become(
    events: list[EventRecord], token: str, agent_key: str, session_key: str
) -> None:
    rows = [row_of(event) for event in events]

    made = encode_event_rows(rows, agent_key, session_key) + encode_next_page_token(token)

    assert made == page_of(events, token, agent_key, session_key)


@pytest.mark.parametrize(
    "change",
    [{"id": ""}, {"id": "x" * 127}, {"id": "x" * 128}, {"sequence": 0}, {"created_at_us": -1}],
)
def test_rows_out_of_the_ordinary_do_too(change: dict[str, object]) -> None:
    fields = {"id": "aev_1", "sequence": 1, "created_at_us": 0, "payload": b"", "turn_id": None}
    event = EventRecord(type=EventType.CUSTOM, **(fields | change))

    made = encode_event_rows([row_of(event)], "support", "order")

    assert made == page_of([event], "", "support", "order")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_a_stored_page_is_made_of_its_events(
    stored: list[EventRecord], store: Store, data: st.DataObject
) -> None:
    scan = data.draw(
        st.builds(
            EventScan,
            limit=st.integers(0, 12),
            max_bytes=st.integers(1, 40_000),
            max_rows=st.integers(1, 12),
            after_sequence=st.integers(-1, 13),
            before_sequence=st.none() | st.integers(1, 13),
            descending=st.booleans(),
            types=st.frozensets(st.sampled_from(EventType), max_size=3),
            include_hidden=st.booleans(),
            created_from_us=st.none() | st.integers(0, 13).map(lambda step: step * 1_100_000),
        )
    )

    def read(tx: ReadTx) -> None:
        found = tx.scan_event_rows(tx.resolve_session(NAME), scan)
        page = tx.scan_events(TENANT, SESSION.uid, scan)
        assert found.resume_at == page.resume_at
        assert [row_of(event) for event in page.events] == list(found.rows)
        assert all(event == stored[event.sequence - 1] for event in page.events)
        made = encode_event_rows(found.rows, AGENT.key, SESSION.key)
        made += encode_next_page_token("token")
        assert made == page_of(page.events, "token", AGENT.key, SESSION.key)
        assert len(event_service_pb2.ListEventsResponse.FromString(made).events) == len(page.events)

    await store.read(read)


@pytest.fixture
async def stored(store: Store) -> list[EventRecord]:
    """Give the events of a session: small, large, hidden and deleted ones."""
    sizes = [10, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, 200, 0, 16_300]
    events = [
        EventRecord(
            id=f"aev_{number}",
            sequence=number,
            type=list(EventType)[number % 4],
            turn_id=f"trn_{number // 3}" if number % 3 else None,
            created_at_us=number * 1_234_567,
            payload=event_pb2.Event(
                agent_output=event_pb2.AgentOutput(content="x" * sizes[number % 6])
            ).SerializeToString()
            if number != 7
            else b"",
            tool_call_id="call_\N{SNOWMAN}" if number == 4 else None,
            hide_reason=HideReason.MANUAL if number == 5 else HideReason.NONE,
            deleted_at_us=99 if number == 7 else None,
        )
        for number in range(1, 13)
    ]
    await with_session(store)
    await with_events(store, events)
    return events
