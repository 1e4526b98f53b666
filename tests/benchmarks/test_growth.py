"""What calls cost in sessions of up to a million events, and among up to a million sessions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import grpc
import pytest

from hansard.v1 import (
    event_service_pb2,
    event_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from tests.benchmarks import messages
from tests.benchmarks.bulk import Bulk
from tests.benchmarks.fill import Filler
from tests.benchmarks.goals import GOALS
from tests.benchmarks.measure import QUICK, Report, compare
from tests.benchmarks.messages import AGENT_KEY
from tests.benchmarks.picture import draw
from tests.benchmarks.processes import serve
from tests.support.databases import Databases

SIZES = (10, 1_000, 10_000) if QUICK else (10, 1_000, 100_000, 1_000_000)
FEW, MANY = SIZES[0], SIZES[-1]
CONTROL = -FEW
"""Stands for as many as FEW, in a database and a server of their own."""
CALLS = 5 if QUICK else 60
PAGE = 10
HISTORY = 1_000
"""More events than a model is given: a turn then costs the same."""
# A session that is written to does not stay short: short ones are taken in turn.
SHORT_SESSIONS = 400

Call = Callable[[], object]


class Caller:
    """Calls of one server; sessions are named by functions, so that each call may have another."""

    def __init__(self, channel: grpc.Channel) -> None:
        """Call by this channel."""
        self._events = event_service_pb2_grpc.EventServiceStub(channel)
        self._sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        self._numbers = count()

    def append(self, key: Callable[[], str]) -> None:
        """Append an event."""
        self._events.AppendEvents(messages.append(key(), f"a-{next(self._numbers)}"))

    def send(self, key: Callable[[], str]) -> None:
        """Send an input, and read its turn to the end."""
        last = list(self._events.SendEvent(messages.send(key(), f"s-{next(self._numbers)}")))[-1]
        assert last.HasField("turn_end")

    def page(self, key: str, **fields: int) -> None:
        """List ten events."""
        request = event_service_pb2.ListEventsRequest(
            agent_key=AGENT_KEY, session_key=key, page_size=PAGE, **fields
        )
        assert len(self._events.ListEvents(request).events) == PAGE

    def watch(self, key: str, after: int) -> None:
        """Watch from there until it has caught up."""
        stream = self._events.WatchEvents(
            event_service_pb2.WatchEventsRequest(
                agent_key=AGENT_KEY, session_key=key, after_sequence=after
            )
        )
        for response in stream:
            if response.HasField("caught_up"):
                stream.cancel()
                return

    def create(self) -> None:
        """Create a session."""
        self._sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(
                agent_key=AGENT_KEY, key=f"new-{next(self._numbers)}", name="New"
            )
        )

    def get(self, key: Callable[[], str]) -> None:
        """Get a session."""
        self._sessions.GetSession(
            session_service_pb2.GetSessionRequest(agent_key=AGENT_KEY, session_key=key())
        )

    def list_sessions(self) -> None:
        """List ten sessions."""
        request = session_service_pb2.ListSessionsRequest(agent_key=AGENT_KEY, page_size=PAGE)
        assert len(self._sessions.ListSessions(request).sessions) == PAGE


def long_key(size: int) -> str:
    """Return the key of the session of so many events."""
    return f"long-{size}"


@pytest.fixture(scope="module")
def of_events(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """Give calls of a server with sessions of every size."""
    filler = Filler(store_url)
    bulk = Bulk(store_url, filler)
    for size in SIZES:
        bulk.add_events(long_key(size), size)
    bulk.add_events("history", HISTORY)
    filler.add_sessions((f"short-{n}" for n in range(SHORT_SESSIONS)), events_each=FEW)
    bulk.close()
    filler.close()
    with (
        serve(tmp_path_factory.mktemp("server"), store_url) as served,
        grpc.insecure_channel(served.address) as channel,
    ):
        yield Caller(channel)


def test_a_long_session(of_events: Caller, database: str, report: Report) -> None:
    shorts = (f"short-{number % SHORT_SESSIONS}" for number in count())
    grown = {FEW: lambda: next(shorts)}
    keys = {size: grown.get(size, partial(long_key, size)) for size in SIZES}
    calls: dict[str, Mapping[int, Call]] = {
        "ListEvents, the last ten": {
            size: partial(of_events.page, long_key(size), after_sequence=size - PAGE)
            for size in SIZES
        },
        "ListEvents, the first ten": {
            size: partial(of_events.page, long_key(size)) for size in SIZES
        },
        "WatchEvents from the end": {
            size: partial(of_events.watch, long_key(size), size) for size in SIZES
        },
        # Last, for it makes them longer.
        "AppendEvents": {size: partial(of_events.append, keys[size]) for size in SIZES},
    }
    # What a model is given is bounded, and more than ten events.
    turns: dict[int, Call] = {
        FEW: partial(of_events.send, lambda: "history"),
        MANY: partial(of_events.send, lambda: long_key(MANY)),
    }
    calls["SendEvent (to 1,000 events)"] = turns
    _compare(database, "long session", "events in the session", calls, report)


@pytest.fixture(scope="module")
def of_sessions(
    databases: Databases, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, Caller]]:
    """Give calls of a server for each number of sessions."""
    with ExitStack() as stack:
        callers = {}
        for size in (*SIZES, CONTROL):
            url = databases.migrated(database)
            stack.callback(databases.drop, url)
            filler = Filler(url)
            bulk = Bulk(url, filler)
            bulk.add_sessions("s", abs(size))
            bulk.close()
            filler.close()
            folder: Path = tmp_path_factory.mktemp("server")
            # Else an agent gets 100 sessions a second.
            options = ("--set", "agent_max_sessions_per_s=0")
            served = stack.enter_context(serve(folder, url, *options))
            channel = stack.enter_context(grpc.insecure_channel(served.address))
            callers[size] = Caller(channel)
        yield callers


def test_many_sessions(of_sessions: dict[int, Caller], database: str, report: Report) -> None:
    chance = random.Random(1)

    def any_of(size: int) -> str:
        return f"s-{chance.randint(1, abs(size))}"

    calls: dict[str, Mapping[int, Call]] = {
        "AppendEvents": {
            size: partial(caller.append, partial(any_of, size))
            for size, caller in of_sessions.items()
        },
        "SendEvent": {
            size: partial(caller.send, partial(any_of, size))
            for size, caller in of_sessions.items()
        },
        "GetSession": {
            size: partial(caller.get, partial(any_of, size)) for size, caller in of_sessions.items()
        },
        "CreateSession": {size: caller.create for size, caller in of_sessions.items()},
        "ListSessions": {size: caller.list_sessions for size, caller in of_sessions.items()},
    }
    _compare(database, "many sessions", "sessions", calls, report)


def _compare(
    database: str,
    goal: str,
    counted: str,
    calls: Mapping[str, Mapping[int, Call]],
    report: Report,
) -> None:
    curves = {}
    for name, by_size in calls.items():
        base, *others = (size for size in by_size if size != CONTROL)
        table = compare(
            f"{database}: {name}, {counted}",
            (f"{base:,}", by_size[base]),
            {f"{size:,}": by_size[size] for size in others},
            each=CALLS,
            again=by_size.get(CONTROL),
        )
        report.add(table)
        curves[name] = {size: table.ratio(f"{size:,}") for size in (base, *others)}
        curves[name][base] = 1.0
    limit = GOALS[goal].limits[database]
    report.draw(
        f"{goal.replace(' ', '-')}-{database}",
        draw(f"{database}: what a call costs, against {FEW}", counted, curves, limit),
    )
    report.reach(goal, database, max(curve[MANY] for curve in curves.values()))
