"""An agent with 100,000 sessions: a page costs the same wherever it is, a search is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1 import paging_pb2, session_service_pb2, session_service_pb2_grpc
from hansard_server.domain.limits import PAGE_MAX_ITEMS, SCAN_MAX_ROWS
from tests.benchmarks.fill import START_US, STEP_US, Filler
from tests.benchmarks.measure import Report, compare
from tests.benchmarks.messages import AGENT_KEY
from tests.benchmarks.processes import serve

SESSIONS = 100_000
PAGE = 100
LIMIT = 1.5
ORDERS = {
    "ascending": paging_pb2.SORT_ORDER_ASCENDING,
    "descending": paging_pb2.SORT_ORDER_DESCENDING,
}

ListResponse = session_service_pb2.ListSessionsResponse


class Lists:
    """ListSessions of the one agent."""

    def __init__(self, stub: session_service_pb2_grpc.SessionServiceStub) -> None:
        """Call by `stub`."""
        self._stub = stub

    def page(self, token: str = "", size: int = PAGE, **fields: Any) -> ListResponse:
        """Return a page."""
        return self._stub.ListSessions(
            session_service_pb2.ListSessionsRequest(
                agent_key=AGENT_KEY, page_size=size, page_token=token, **fields
            )
        )

    def token_after(self, count: int, **fields: Any) -> str:
        """Return the token that leads to what comes after so many sessions."""
        token = ""
        while count:
            size = min(count, PAGE_MAX_ITEMS)
            page = self.page(token, size, **fields)
            assert len(page.sessions) == size
            token = page.next_page_token
            count -= size
        return token


@pytest.fixture(scope="module")
def lists(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lists]:
    """Give lists of an agent with so many sessions."""
    filler = Filler(store_url)
    filler.add_sessions(f"order-{number}" for number in range(SESSIONS))
    filler.close()
    with (
        serve(tmp_path_factory.mktemp("server"), store_url) as served,
        grpc.insecure_channel(served.address) as channel,
    ):
        yield Lists(session_service_pb2_grpc.SessionServiceStub(channel))


@pytest.mark.parametrize("order", ORDERS)
def test_a_page_costs_the_same_anywhere(
    lists: Lists, database: str, order: str, report: Report
) -> None:
    fields = {"order": ORDERS[order]}
    places = {"at 25 %": SESSIONS // 4, "in the middle": SESSIONS // 2, "last": SESSIONS - PAGE}
    tokens = {name: lists.token_after(count, **fields) for name, count in places.items()}
    middle = {
        "created_at_or_after": _time(SESSIONS // 2),
        "created_before": _time(SESSIONS // 2 + 10 * PAGE),
    }
    cases = {name: partial(lists.page, token, **fields) for name, token in tokens.items()}
    cases["of a time in the middle"] = partial(lists.page, **fields, **middle)
    for name, case in cases.items():
        page = case()
        assert len(page.sessions) == PAGE, name
        assert bool(page.next_page_token) == (name != "last")
    table = compare(
        f"{database}: ListSessions, {SESSIONS:,} sessions, {order}, a page of {PAGE}",
        ("first", partial(lists.page, **fields)),
        cases,
    )
    report.add(table)
    table.check(LIMIT)


def test_a_search_that_finds_nothing_is_bounded(
    lists: Lists, database: str, report: Report
) -> None:
    metadata = Struct()
    metadata.update({"customer": "nobody"})
    searches: dict[str, dict[str, Any]] = {
        "no text matches": {"filter": "no such (word|thing)"},
        "no metadata matches": {"metadata": metadata},
    }
    for fields in searches.values():
        calls, found = _walk(lists, fields)
        assert found == 0
        # The last page that is full of rows can't know that it is the last.
        assert calls - 1 <= SESSIONS / SCAN_MAX_ROWS <= calls
    cases = {name: partial(lists.page, **fields) for name, fields in searches.items()}
    for case in cases.values():
        page = case()
        assert not page.sessions
        assert page.next_page_token
    table = compare(
        f"{database}: ListSessions, {SESSIONS:,} sessions, one call that looks at"
        f" {SCAN_MAX_ROWS:,} and finds none",
        (f"{SCAN_MAX_ROWS:,} found, by pages", partial(lists.token_after, SCAN_MAX_ROWS)),
        cases,
        each=1,
    )
    report.add(table)
    table.check(LIMIT)


def _walk(lists: Lists, fields: dict[str, Any]) -> tuple[int, int]:
    """Return how many calls it takes to the end, and how much is found."""
    calls = found = 0
    token = ""
    while calls == 0 or token:
        page = lists.page(token, **fields)
        calls += 1
        found += len(page.sessions)
        token = page.next_page_token
    return calls, found


def _time(number: int) -> Timestamp:
    """Return when the session of this number was created."""
    return Timestamp(seconds=(START_US + number * STEP_US) // 1_000_000)
