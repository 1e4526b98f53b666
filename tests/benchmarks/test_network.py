"""PostgreSQL a millisecond away: how many round trips a call waits for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.benchmarks.fill import Filler
from tests.benchmarks.load_client import session_keys
from tests.benchmarks.measure import QUICK, ROUNDS, Report, to_table
from tests.benchmarks.processes import Served, client, serve
from tests.support.databases import Databases
from tests.support.relay import Relay, relayed

SECONDS = 0.5 if QUICK else 2.0
DELAY_S = 0.001
LISTED = "listed"
CALLS = {
    "AppendEvents": ("append", ""),
    "AppendEvents to a session that it knows": ("append", LISTED),
    "SendEvent": ("send", ""),
    "SendEvent to a session that it knows": ("send", LISTED),
    "ListEvents": ("list", LISTED),
}
NEAR, FAR = "near", "far"


@dataclass(frozen=True, slots=True)
class Subject:
    """A server, and the relay on its way to the database."""

    served: Served
    relay: Relay


@pytest.fixture(scope="module")
def subjects(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Subject]]:
    """Give a server near its database, and one that is a millisecond away from it."""
    folder: Path = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        made = {}
        for name, delay_s in ((NEAR, 0.0), (FAR, DELAY_S)):
            url = databases.migrated("postgresql")
            stack.callback(databases.drop, url)
            if not str(make_url(url).query.get("host", "")).startswith("/"):
                pytest.skip("the PostgreSQL server has no Unix socket")
            _fill(url)
            short = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            through, relay = stack.enter_context(relayed(url, short / "pg", delay_s=delay_s))
            served = stack.enter_context(serve(folder / name, through, insecure=False))
            made[name] = Subject(served, relay)
        yield made


@pytest.mark.parametrize("name", CALLS)
def test_round_trips(subjects: dict[str, Subject], name: str, report: Report) -> None:
    workload, place = CALLS[name]
    trips: dict[str, float] = {}
    rounds: list[dict[str, float]] = []
    with ExitStack() as stack:
        loads = {
            who: stack.enter_context(client(one.served.address, workload, one.served.key, 1, place))
            for who, one in subjects.items()
        }
        for _ in range(ROUNDS):
            seen = {}
            for who, load in loads.items():
                before = subjects[who].relay.round_trips
                load.begin(SECONDS, 0.2)
                counted = load.result()
                assert not counted["others"], counted["others"]
                trips[who] = (subjects[who].relay.round_trips - before) / counted["calls"]
                seen[who] = counted["p50_ms"]
            rounds.append(seen)
    notes = {who: f"some {trips[who]:.1f} round trips a call" for who in subjects}
    report.add(
        to_table(
            f"{name} alone, a database {DELAY_S * 1_000:.0f} ms away", "ms", NEAR, rounds, notes
        )
    )


def _fill(url: str) -> None:
    filler = Filler(url)
    for number in range(ROUNDS + 1):
        for workload in ("append", "send"):
            filler.add_sessions(session_keys(workload, number))
    filler.add_sessions([LISTED], events_each=1_000)
    filler.close()
