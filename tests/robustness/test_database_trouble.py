"""The database is stopped, killed, full, read-only, or out of connections: every call is answered
in time and with a reason, health says so, and afterwards nothing is lost and all goes on.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from hansard.v1 import (
    artifact_service_pb2,
    event_service_pb2,
    session_pb2,
    session_service_pb2,
    turn_pb2,
)
from hansard_server.repository.sql import jobs
from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.migrations import migrate
from hansard_server.repository.sql.store import SqlStore
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.postgres import OwnPostgres, connect, own_postgres
from tests.support.server import Failure, Running, make_settings, running_server, to_failure
from tests.support.talk import Talk, check_turn, model, rating, stored

ANSWER_TIMEOUT_S = 1.5
"""What the store waits for the database here, instead of 15 s."""
BOUND_S = 30.0
"""No call waits longer, on a machine however busy."""
LARGE = f'"{"x" * 200_000}"'
SLOW = [
    {"thinking": {"content": "abcdefghij", "delta_count": 10, "pause_ms": 100}},
    {"tool_call": {"name": "t", "input": {}, "output": {}, "pause_ms": 200}},
    {"agent_output": {"content": "klmnopqrst", "delta_count": 10, "pause_ms": 100}},
]
QUICK = [{"agent_output": {"content": "quick"}}]
COMPLETED = turn_pb2.TURN_STATUS_COMPLETED
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Trouble:
    """How a database comes to grief, and recovers.

    Attributes:
        refused: calls that can't succeed meanwhile; the others may.
    """

    url: str
    refused: frozenset[str]
    begin: Callable[[Engine], None]
    end: Callable[[], None]
    done: list[Any] = field(default_factory=list)


ALL = frozenset({"append", "send", "list", "get", "create", "update", "upload", "hide", "watch"})
WRITES = ALL - {"list", "get", "watch"}
# These write more than there is room for.
LARGE_WRITES = frozenset({"append", "send"})


# Troubles -----------------------------------------------------------------------------------------


def database_of(server: OwnPostgres) -> str:
    url = server.create_database()
    engine = make_engine(url)
    migrate(engine)
    engine.dispose()
    return url


@contextmanager
def frozen_postgres(_: Databases, __: Path) -> Iterator[Trouble]:
    with own_postgres() as server:
        yield Trouble(database_of(server), ALL, lambda _: server.freeze(), server.thaw)
        server.thaw()


@contextmanager
def killed_postgres(_: Databases, __: Path) -> Iterator[Trouble]:
    with own_postgres() as server:
        yield Trouble(database_of(server), ALL, lambda _: server.kill(), server.start)


@contextmanager
def standby_postgres(_: Databases, __: Path) -> Iterator[Trouble]:
    with own_postgres() as server:
        url = database_of(server)

        def stand_by(_: Engine) -> None:
            server.kill()
            server.start(standby=True)

        def promote() -> None:
            with connect(server.url) as connection:
                connection.execute("SELECT pg_promote()")

        yield Trouble(url, WRITES, stand_by, promote)


@contextmanager
def full_postgres(_: Databases, __: Path) -> Iterator[Trouble]:
    # PostgreSQL runs as another user, who may not see into the folders of tests.
    data = Path(tempfile.mkdtemp(prefix="hansard-small-"))
    data.chmod(0o755)
    with small_disk(data, "320m"), own_postgres(data) as server:
        url = database_of(server)
        ballast = data / "ballast"

        def fill(_: Engine) -> None:
            with suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(bytes(65_536))
                    file.flush()

        def empty() -> None:
            ballast.unlink()
            if not server.is_running:
                # It gives up when there is no room for its log; whoever runs it starts it again.
                server.start()

        yield Trouble(url, LARGE_WRITES, fill, empty)
        ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("a disk that is really full needs the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@contextmanager
def full_sqlite(databases: Databases, _: Path) -> Iterator[Trouble]:
    pragma = Pragma("max_page_count", lambda c: c.scalar(text("PRAGMA page_count")), 2**31 - 2)
    yield Trouble(databases.migrated("sqlite"), LARGE_WRITES, pragma.begin, pragma.end)


@contextmanager
def full_disk_sqlite(_: Databases, folder: Path) -> Iterator[Trouble]:
    data = folder / "small"
    with small_disk(data, "8m"):
        url = f"sqlite:///{data}/hansard.db"
        engine = make_engine(url)
        migrate(engine)
        engine.dispose()
        ballast = data / "ballast"

        def fill(_: Engine) -> None:
            free = os.statvfs(data)
            ballast.write_bytes(bytes(free.f_bavail * free.f_frsize))

        yield Trouble(url, WRITES - {"upload"}, fill, ballast.unlink)


@contextmanager
def read_only_sqlite(databases: Databases, _: Path) -> Iterator[Trouble]:
    pragma = Pragma("query_only", lambda _: 1, 0)
    yield Trouble(databases.migrated("sqlite"), WRITES, pragma.begin, pragma.end)


class Pragma:
    """Sets a pragma on every connection of the server, before each of its transactions."""

    def __init__(self, name: str, bad: Callable[[Connection], object], good: object) -> None:
        self._name = name
        self._bad = bad
        self._good = good
        self._value: object = None

    def begin(self, engine: Engine) -> None:
        with engine.connect() as connection:
            self._value = self._bad(connection)

        @event.listens_for(engine, "begin", insert=True)
        def on_begin(connection: Connection) -> None:
            connection.connection.execute(f"PRAGMA {self._name} = {self._value}")

    def end(self) -> None:
        self._value = self._good


@contextmanager
def no_connections(databases: Databases, kind: str) -> Iterator[Trouble]:
    held = ExitStack()

    def take_all(engine: Engine) -> None:
        with suppress(PoolTimeoutError):
            while True:
                held.enter_context(engine.connect())

    url = databases.migrated(kind)
    # The writer and readers keep theirs, so that commands and reads go on.
    refused = () if kind == "sqlite" else ("create", "update", "hide")
    yield Trouble(url, frozenset(refused), take_all, held.close)
    databases.drop(url)


TROUBLES: dict[str, Callable[[Databases, Path], Any]] = {
    "frozen-postgresql": frozen_postgres,
    "killed-postgresql": killed_postgres,
    "standby-postgresql": standby_postgres,
    "full-postgresql": full_postgres,
    "no-connections-postgresql": lambda databases, _: no_connections(databases, "postgresql"),
    "full-sqlite": full_sqlite,
    "full-disk-sqlite": full_disk_sqlite,
    "read-only-sqlite": read_only_sqlite,
    "no-connections-sqlite": lambda databases, _: no_connections(databases, "sqlite"),
}


@pytest.fixture(params=TROUBLES)
def trouble(
    request: pytest.FixtureRequest, databases: Databases, tmp_path: Path
) -> Iterator[Trouble]:
    """Give each trouble in turn."""
    if "postgresql" in request.param and "frozen" in request.param and not Path("/proc").exists():
        pytest.skip("finds the processes of PostgreSQL in /proc")
    with TROUBLES[request.param](databases, tmp_path) as made:
        yield made


# What is called -----------------------------------------------------------------------------------


def calls_of(talk: Talk, event_id: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return one call of each kind; those that write have a request_id, or may be repeated."""
    server, keys = talk.server, talk.keys
    part = artifact_service_pb2.UploadArtifactsRequest

    async def upload() -> Any:
        async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
            yield part(start=artifact_service_pb2.UploadStart(request_id="u", **keys))
            yield part(header=artifact_service_pb2.UploadHeader(filename="a.txt"))
            yield part(chunk=b"hello")

        return await server.artifacts.UploadArtifacts(parts())

    async def watch() -> Any:
        async for response in talk.watch():
            if response.HasField("caught_up"):
                return response
        raise AssertionError("the watch has ended")

    return {
        "append": lambda: talk.append(rating(LARGE), request_id="a"),
        "send": lambda: talk.send("x" * 200_000, request_id="s"),
        "list": talk.events,
        "get": lambda: server.sessions.GetSession(
            session_service_pb2.GetSessionRequest(**keys), timeout=BOUND_S
        ),
        "create": lambda: server.sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(
                agent_key=talk.agent_key, name="New", key="new", request_id="c"
            )
        ),
        "update": lambda: server.sessions.UpdateSession(
            session_service_pb2.UpdateSessionRequest(
                session=session_pb2.Session(
                    agent_key=talk.agent_key, key=talk.session_key, name="Other"
                ),
                update_mask={"paths": ["name"]},
            )
        ),
        "upload": upload,
        "hide": lambda: server.events.HideEvent(
            event_service_pb2.HideEventRequest(event_id=event_id, **keys)
        ),
        "watch": watch,
    }


async def outcome(call: Callable[[], Awaitable[Any]]) -> Failure | None:
    """Return how the call failed, None if it did not; it must end in time."""
    async with asyncio.timeout(BOUND_S):
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            return to_failure(error)
    return None


async def until_done(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the answer; while the store is unavailable the call is repeated, as clients do."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if to_failure(error).reason != "STORE_UNAVAILABLE":
                    raise
                await asyncio.sleep(0.05)


async def until_health(server: Running, status: int) -> None:
    health: Any = health_pb2_grpc.HealthStub(server.channel)
    async with asyncio.timeout(BOUND_S):
        async for response in health.Watch(health_pb2.HealthCheckRequest()):
            if response.status == status:
                return


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Give the engines of the stores that are made; these wait for the database a short while."""
    monkeypatch.setattr(jobs, "ANSWER_TIMEOUT_S", ANSWER_TIMEOUT_S)
    made: list[Engine] = []
    init = SqlStore.__init__

    def noting(store: SqlStore, engine: Engine, **more: Any) -> None:
        made.append(engine)
        init(store, engine, **more)

    monkeypatch.setattr(SqlStore, "__init__", noting)
    return made


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=BOUND_S)


async def test_database_in_trouble(trouble: Trouble, engines: list[Engine], tmp_path: Path) -> None:
    settings = make_settings(
        *(tmp_path / "data", trouble.url), health_interval_s=0.1, lease_s=2.0, poll_floor_s=0.2
    )
    async with AsyncExitStack() as stack:
        hansard = await stack.enter_async_context(running_server(settings))
        talk = await Talk(hansard).begin(QUICK)
        acknowledged = await talk.append(rating(), rating())
        first = (await talk.events())[0]
        held = await talk.another("held").open_session()
        running, turn_id = await held.hold()
        slow = await talk.another("slow").open_session()
        await talk.set_model(model(SLOW))
        told = slow.stream("A", request_id="slow")
        async for response in told:
            if response.HasField("delta"):
                break
        await talk.set_model(model(QUICK))
        await until_health(hansard, SERVING)
        calls = calls_of(talk, first.id)

        await asyncio.to_thread(trouble.begin, engines[-1])
        try:
            tasks = {name: asyncio.create_task(outcome(call)) for name, call in calls.items()}
            # An input that was accepted has a turn, which waits for the database and is told then.
            await ended([tasks[name] for name in trouble.refused])
            await until_health(hansard, NOT_SERVING)
        finally:
            await asyncio.to_thread(trouble.end)
        results = await asyncio.gather(*tasks.values())
        failed = {name for name, failure in zip(calls, results, strict=True) if failure}
        assert failed >= trouble.refused
        for failure in filter(None, results):
            assert failure.code is grpc.StatusCode.UNAVAILABLE, failure
            assert failure.reason == "STORE_UNAVAILABLE"
            assert failure.retry_s is not None

        await until_health(hansard, SERVING)
        answers = {name: await until_done(call) for name, call in calls.items()}
        again = {name: await until_done(calls[name]) for name in ("append", "upload", "create")}
        assert again == {name: answers[name] for name in again}
        check_turn(answers["send"])
        assert answers["send"][-1].turn_end.turn.status == COMPLETED
        # The turns that were running go on, and the one that is cancelled ends.
        told.cancel()
        responses = await until_done(lambda: slow.send("A", request_id="slow"))
        assert responses[-1].turn_end.turn.status == COMPLETED
        assert stored(responses) == await slow.events()
        released = await until_done(lambda: held.release(turn_id))
        assert released.status == turn_pb2.TURN_STATUS_INTERRUPTED
        running.cancel()
        events = await talk.events(include_hidden=True)
        assert [e.sequence for e in events[:2]] == acknowledged
        assert sum(e.custom.data_json == LARGE for e in events) == 1
        assert sum(e.HasField("artifact_upload") for e in events) == 1
        assert len(await talk.turns()) == 1
    check_store(trouble.url, tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
