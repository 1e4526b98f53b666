"""A session of 100,000 events: reads and writes cost what they cost in a short one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc, paging_pb2
from hansard_server.domain.limits import PAGE_MAX_ITEMS
from tests.benchmarks.fill import START_US, STEP_US, Filler, event_id
from tests.benchmarks.measure import CALLS, ROUNDS, Report, compare
from tests.benchmarks.messages import AGENT_KEY
from tests.benchmarks.processes import serve
from tests.support.talk import message, output

EVENTS = 100_000
FEW_EVENTS = 10
PAGE = 100
LIMIT = 1.5
# A session that is written to does not stay short: each call has its own.
SHORT_SESSIONS = 2 * (2 * ROUNDS * CALLS + 10)
LONG, SHORT = "long", "short-{}"
ORDERS = {
    "ascending": paging_pb2.SORT_ORDER_ASCENDING,
    "descending": paging_pb2.SORT_ORDER_DESCENDING,
}

ListResponse = event_service_pb2.ListEventsResponse


class Events:
    """Calls of EventService."""

    def __init__(self, stub: event_service_pb2_grpc.EventServiceStub) -> None:
        """Call by `stub`."""
        self._stub = stub
        self._numbers = count()
        self._short_numbers = iter(range(SHORT_SESSIONS))

    def short_key(self) -> str:
        """Return the key of a short session that nobody has written to."""
        return SHORT.format(next(self._short_numbers))

    def page(self, token: str = "", size: int = PAGE, **fields: Any) -> ListResponse:
        """Return a page of the long session."""
        return self._stub.ListEvents(
            event_service_pb2.ListEventsRequest(
                agent_key=AGENT_KEY, session_key=LONG, page_size=size, page_token=token, **fields
            )
        )

    def token_after(self, count: int, **fields: Any) -> str:
        """Return the token that leads to what comes after so many events."""
        token = ""
        while count:
            page = self.page(token, min(count, PAGE_MAX_ITEMS), **fields)
            token = page.next_page_token
            count -= len(page.events)
        return token

    def get(self, sequence: int) -> event_pb2.Event:
        """Return an event of the long session."""
        return self._stub.GetEvent(
            event_service_pb2.GetEventRequest(
                agent_key=AGENT_KEY, session_key=LONG, event_id=event_id(sequence)
            )
        )

    def append(self, session_key: Callable[[], str]) -> None:
        """Append one event."""
        self._stub.AppendEvents(
            event_service_pb2.AppendEventsRequest(
                agent_key=AGENT_KEY,
                session_key=session_key(),
                request_id=f"append-{next(self._numbers)}",
                events=[output("x" * 500)],
            )
        )

    def send(self, session_key: Callable[[], str]) -> None:
        """Send an input and read its turn to the end."""
        request = event_service_pb2.SendEventRequest(
            agent_key=AGENT_KEY,
            session_key=session_key(),
            request_id=f"send-{next(self._numbers)}",
            input_message=message("Where is my parcel?"),
        )
        last = list(self._stub.SendEvent(request))[-1]
        assert last.HasField("turn_end")
        assert not last.turn_end.turn.HasField("error")


@pytest.fixture(scope="module")
def events(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Events]:
    """Give a long session, and many short ones."""
    filler = Filler(store_url)
    filler.add_sessions([LONG], events_each=EVENTS)
    filler.add_sessions(map(SHORT.format, range(SHORT_SESSIONS)), events_each=FEW_EVENTS)
    filler.close()
    with (
        serve(tmp_path_factory.mktemp("server"), store_url) as served,
        grpc.insecure_channel(served.address) as channel,
    ):
        yield Events(event_service_pb2_grpc.EventServiceStub(channel))


@pytest.mark.parametrize("order", ORDERS)
def test_a_page_costs_the_same_anywhere(
    events: Events, database: str, order: str, report: Report
) -> None:
    fields = {"order": ORDERS[order]}
    places = {"at 25 %": EVENTS // 4, "in the middle": EVENTS // 2, "last": EVENTS - PAGE}
    tokens = {name: events.token_after(count, **fields) for name, count in places.items()}
    cases = {name: partial(events.page, token, **fields) for name, token in tokens.items()}
    middle = {"created_at_or_after": _time(EVENTS // 2), "created_before": _time(EVENTS * 3 // 4)}
    cases["after sequence 50,000"] = partial(events.page, after_sequence=EVENTS // 2, **fields)
    cases["before sequence 50,000"] = partial(events.page, before_sequence=EVENTS // 2, **fields)
    cases["of a time in the middle"] = partial(events.page, **fields, **middle)
    for name, case in cases.items():
        assert len(case().events) == PAGE, name
    table = compare(
        f"{database}: ListEvents, {EVENTS:,} events, {order}, a page of {PAGE}",
        ("first", partial(events.page, **fields)),
        cases,
    )
    report.add(table)
    table.check(LIMIT)


def test_an_event_is_found_at_the_same_cost(events: Events, database: str, report: Report) -> None:
    sequences = {f"event {number:,}": number for number in (EVENTS // 2, EVENTS - FEW_EVENTS)}
    cases = {name: partial(events.get, sequence) for name, sequence in sequences.items()}
    for name, sequence in sequences.items():
        assert cases[name]().sequence == sequence
    table = compare(
        f"{database}: GetEvent, {EVENTS:,} events",
        (f"event {FEW_EVENTS}", partial(events.get, FEW_EVENTS)),
        cases,
        each=4 * CALLS,
    )
    report.add(table)
    table.check(LIMIT)


def test_an_append_costs_the_same(events: Events, database: str, report: Report) -> None:
    table = compare(
        f"{database}: AppendEvents, one event of 500 bytes",
        (f"session of {FEW_EVENTS}", partial(events.append, events.short_key)),
        {f"session of {EVENTS:,}": partial(events.append, lambda: LONG)},
    )
    report.add(table)
    table.check(LIMIT)


def test_a_turn_costs_the_same(events: Events, database: str, report: Report) -> None:
    # As far as its model needs to know nothing of what was said before; one that does pays for
    # what it reads.
    table = compare(
        f"{database}: SendEvent, a turn",
        (f"session of {FEW_EVENTS}", partial(events.send, events.short_key)),
        {f"session of {EVENTS:,}": partial(events.send, lambda: LONG)},
    )
    report.add(table)
    table.check(LIMIT)


def _time(sequence: int) -> Timestamp:
    """Return when the event of this sequence was created."""
    return Timestamp(seconds=(START_US + sequence * STEP_US) // 1_000_000)
