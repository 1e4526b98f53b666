"""The same work in what people use instead: google-adk, a2a-sdk and langgraph, each on the same
kind of database, in an environment of their own. Two of them work in their clients' process;
Hansard's clients come over gRPC, with a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from hansard_server.repository.sql.engine import make_engine
from tests.benchmarks.fill import Filler
from tests.benchmarks.load_client import session_keys
from tests.benchmarks.measure import AGAIN, QUICK, ROUNDS, Report, Table, to_table
from tests.benchmarks.processes import Client, Served, client, peer, serve, serve_a2a
from tests.support.databases import Databases
from tests.support.venvs import python_with

PEERS = (
    *("google-adk==2.13.0", "a2a-sdk[grpc,sqlite,postgresql]==1.3.0", "langgraph==1.2.22"),
    *("langgraph-checkpoint-sqlite==3.1.2", "langgraph-checkpoint-postgres==3.2.0"),
    *("sqlalchemy[asyncio]>=2.1,<2.2", "aiosqlite==0.22.1", "asyncpg==0.32.0"),
    *("psycopg[binary]>=3.3,<4", "uvloop>=0.22,<1"),
)
SECONDS = 0.5 if QUICK else 2.0
LONG = 300 if QUICK else 5_040
MESSAGES = 500 if QUICK else 5_000
AT_A_TIME = 16
LONG_KEYS = ("send-long", "turn-long")
SHORT_KEY = "send-short"
SHORT = 10
TURNS_WRITTEN = 20
HANSARD, PEER = "hansard", "peer"
_KIB = 1_024


@pytest.fixture(scope="module")
def python() -> Path:
    """Give the Python of the peers' environment."""
    return python_with("peers", *PEERS)


@pytest.fixture(scope="module")
def served(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Give a server as it is shipped, with short sessions and long ones."""
    filler = Filler(store_url)
    for number in range(2 * ROUNDS + 2):
        for workload in ("append", "send"):
            filler.add_sessions(session_keys(workload, number))
    filler.add_sessions([LONG_KEYS[0]], events_each=MESSAGES)
    filler.add_sessions([LONG_KEYS[1]], events_each=LONG)
    filler.add_sessions([SHORT_KEY], events_each=SHORT)
    filler.close()
    with serve(tmp_path_factory.mktemp("server"), store_url, insecure=False) as server:
        yield server


@pytest.fixture
def theirs(databases: Databases, database: str, tmp_path: Path) -> Iterator[str]:
    """Give the URL of a database of theirs, empty, as SQLAlchemy names it without a driver."""
    if database == "sqlite":
        yield f"sqlite:///{tmp_path / 'theirs.db'}"
        return
    url = databases.empty(database)
    yield url
    databases.drop(url)


def asynchronous(url: str) -> str:
    """Return the URL for SQLAlchemy's asyncio."""
    if url.startswith("sqlite"):
        return url.replace("sqlite", "sqlite+aiosqlite", 1)
    return make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def plain(url: str) -> str:
    """Return the URL as libpq takes it."""
    if url.startswith("sqlite"):
        return url
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def test_adk_append(
    served: Served, theirs: str, database: str, python: Path, report: Report
) -> None:
    ours = client(served.address, "append", served.key, AT_A_TIME)
    its = peer(python, "adk-append", asynchronous(theirs), 0)
    title = f"{database}: google-adk's database service, append, {AT_A_TIME} sessions at a time"
    report.reach("adk append", database, 1 / _compare(title, ours, its, report).ratio(PEER))


def test_adk_turn(served: Served, theirs: str, database: str, python: Path, report: Report) -> None:
    ours = client(served.address, LONG_KEYS[1], served.key, program="turn_client.py")
    its = peer(python, "adk-turn", asynchronous(theirs), LONG)
    title = f"{database}: google-adk, get and 3 appends at event {LONG:,}"
    report.reach("adk turn", database, 1 / _compare(title, ours, its, report).ratio(PEER))


def test_a2a(
    served: Served, theirs: str, database: str, python: Path, tmp_path: Path, report: Report
) -> None:
    with serve_a2a(tmp_path / "a2a", python, asynchronous(theirs)) as (address, request):
        ours = client(served.address, "send", served.key, AT_A_TIME)
        its = client(address, "a2a", "", AT_A_TIME, request)
        title = f"{database}: a2a-sdk's server, a streamed turn, {AT_A_TIME} at a time"
        report.reach("a2a", database, 1 / _compare(title, ours, its, report).ratio(PEER))


def test_langgraph(
    served: Served, theirs: str, database: str, python: Path, report: Report
) -> None:
    ours = client(served.address, "send", served.key, 1, LONG_KEYS[0])
    its = peer(python, "langgraph", plain(theirs), MESSAGES)
    title = f"{database}: langgraph's checkpointer, a turn at {MESSAGES:,} messages"
    report.reach("langgraph", database, 1 / _compare(title, ours, its, report).ratio(PEER))


def test_bytes_of_a_turn(served: Served, store_url: str, database: str, report: Report) -> None:
    written = _written(served, store_url)
    rounds = []
    with ExitStack() as stack:
        loads = {
            key: stack.enter_context(client(served.address, "send", served.key, 1, key))
            for key in (SHORT_KEY, LONG_KEYS[0])
        }
        for load in loads.values():
            _run(load)
        for _ in range(ROUNDS):
            figures = {}
            for key, load in loads.items():
                before = written()
                turns = _run(load)["calls"]
                figures[key] = (written() - before) / turns / _KIB
            rounds.append({"at 10": figures[SHORT_KEY], f"at {MESSAGES:,}": figures[LONG_KEYS[0]]})
    table = to_table(f"{database}: bytes that a turn writes", "KiB", "at 10", rounds)
    report.add(table)
    report.reach("bytes", database, table.ratio(f"at {MESSAGES:,}"))


def _written(served: Served, url: str) -> Callable[[], float]:
    """Return what tells how many bytes were written so far: by the process, or to a log."""
    if url.startswith("sqlite"):
        return lambda: float(_io(served.pid)["wchar"])
    engine = make_engine(url)

    def position() -> float:
        with engine.connect() as connection:
            here = connection.scalar(text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
        engine.dispose()
        return float(here or 0)

    return position


def _io(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def _compare(
    title: str,
    ours: AbstractContextManager[Client],
    its: AbstractContextManager[Client],
    report: Report,
) -> Table:
    """Return the table of rates, Hansard's first."""
    with ExitStack() as stack:
        loads = {HANSARD: stack.enter_context(ours), PEER: stack.enter_context(its)}
        rounds, notes = [], {}
        for load in loads.values():
            _run(load)
        names = [HANSARD, AGAIN, PEER]
        for number in range(ROUNDS):
            figures = {}
            for name in names[number % 3 :] + names[: number % 3]:
                counted = _run(loads[HANSARD if name == AGAIN else name])
                figures[name] = counted["calls"] / counted["seconds"]
                notes[name] = (
                    f"p50 {counted['p50_ms']:.2f} ms,"
                    f" client {counted['cpu_seconds'] / counted['seconds']:.0%}"
                )
            rounds.append({name: figures[name] for name in names})
    table = to_table(title, "per s", HANSARD, rounds, notes)
    report.add(table)
    return table


def _run(load: Client) -> dict[str, float]:
    load.begin(SECONDS)
    counted: dict[str, float] = load.result()
    assert not counted.get("others"), counted
    return counted
