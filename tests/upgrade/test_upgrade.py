"""Upgrades: today's code on a release's database, and that release's code on today's schema."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from hansard.v1 import event_service_pb2, session_pb2, session_service_pb2, turn_pb2
from hansard_server.repository.sql import tables
from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.migrations import SchemaMismatch, check_schema, migrate
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.server import Running, make_settings, running_server
from tests.support.talk import Talk, check_turn, content, rating, stored
from tests.upgrade import release

NAMES = sorted(folder.name for folder in release.RELEASES.iterdir())
COMPLETED = turn_pb2.TURN_STATUS_COMPLETED


@dataclass(frozen=True)
class Left:
    """What a release has left behind: its database, its data directory, what it answered."""

    url: str
    data_dir: Path
    answered: dict[str, Any]
    commit: str


@pytest.fixture(params=NAMES)
def left(
    request: pytest.FixtureRequest, databases: Databases, database: str, tmp_path: Path
) -> Iterator[Left]:
    """Give what each release has left behind on each database, as it was when it was killed."""
    folder = release.RELEASES / str(request.param)
    url = databases.empty(database)
    release.load(database, url, folder)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    shutil.copytree(folder / f"{database}-artifacts", data_dir / "artifacts")
    answered = json.loads((folder / f"{database}.json").read_text())
    yield Left(url, data_dir, answered, (folder / "COMMIT").read_text().strip())
    databases.drop(url)


def version_of(url: str) -> tuple[int, int]:
    engine = make_engine(url)
    with engine.connect() as connection:
        major, minor = connection.execute(select(tables.schema_versions)).one()
    engine.dispose()
    return major, minor


def migrated(left: Left) -> None:
    engine = make_engine(left.url)
    migrate(engine)
    engine.dispose()


@asynccontextmanager
async def served(left: Left) -> AsyncIterator[Running]:
    """Give today's server on what was left behind."""
    settings = make_settings(left.data_dir, left.url, lease_s=1.0)
    async with running_server(settings) as server:
        yield server


def check_part(old: Any, new: Any, where: str = "") -> None:
    """Assert that what was answered once is answered still; new fields may have come."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            assert key in new, f"{where}.{key} is gone"
            check_part(value, new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        assert len(old) == len(new), where
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            check_part(one, other, f"{where}[{index}]")
    else:
        assert old == new, where


async def check_conversations(server: Running, left: Left) -> None:
    """Assert that everything is there, and that what was left in the middle comes to its end."""
    talk, failed, busy = Talk(server), Talk(server, "broken", "s"), Talk(server, "agent", "busy")
    found = await release.read(server, talk, failed)
    check_part({name: left.answered[name] for name in found}, found)
    check_part(left.answered["answers"], await release.repeat(talk))

    # The turn that ran when the release was killed is taken over; then the one that waited runs.
    for request_id, text in (("runs", "Runs."), ("waits", "Waits.")):
        whole = await busy.send(text, request_id=request_id)
        assert whole[-1].turn_end.turn.status == COMPLETED
    events = [release.to_dict(event) for event in await busy.events()]
    check_part(left.answered["busy"], events[: len(left.answered["busy"])])


async def check_writing(server: Running) -> None:
    """Assert that every kind of write goes on where the release stopped."""
    talk = Talk(server)
    before = (await talk.events(include_hidden=True))[-1].sequence
    responses = await talk.send("Go on.")
    check_turn(responses)
    assert content(stored(responses)[-1]) == "The answer: ä, 中, 🙂"
    (sequence,) = await talk.append(rating())
    assert sequence == before + len(stored(responses)) + 1
    events = await talk.events(include_hidden=True)
    assert events[0].hide_reason
    unhide = event_service_pb2.UnhideEventRequest(event_id=events[0].id, **talk.keys)
    assert not (await server.events.UnhideEvent(unhide)).hide_reason
    hide = event_service_pb2.HideEventRequest(event_id=events[0].id, **talk.keys)
    await server.events.HideEvent(hide)
    delete = event_service_pb2.DeleteEventRequest(event_id=events[-1].id, **talk.keys)
    await server.events.DeleteEvent(delete)
    assert (await talk.events(include_hidden=True))[-1].HasField("deleted_at")
    await talk.another("new").open_session()
    check_turn(await talk.another("new").send())
    update = session_service_pb2.UpdateSessionRequest(
        session=session_pb2.Session(agent_key="agent", key="new", name="N"),
        update_mask={"paths": ["name"]},
    )
    assert (await server.sessions.UpdateSession(update)).name == "N"
    gone = session_service_pb2.DeleteSessionRequest(agent_key="agent", session_key="new")
    await server.sessions.DeleteSession(gone)


def test_a_release_has_left_something_behind() -> None:
    assert NAMES


async def test_database_of_a_release_is_migrated_and_goes_on(left: Left) -> None:
    engine = make_engine(left.url)
    old = version_of(left.url)
    assert old < (tables.SCHEMA_MAJOR, tables.SCHEMA_MINOR)
    with engine.connect() as connection, pytest.raises(SchemaMismatch, match="migrate it"):
        check_schema(connection)
    engine.dispose()
    migrated(left)
    check_store(left.url, left.data_dir)
    assert version_of(left.url) == (tables.SCHEMA_MAJOR, tables.SCHEMA_MINOR)
    async with served(left) as server:
        await check_conversations(server, left)
        await check_writing(server)
        # What the release did not know yet.
        fork = session_service_pb2.CreateSessionRequest(
            agent_key="agent", key="fork", name="F", from_session={"session_key": "s"}
        )
        made = await server.sessions.CreateSession(fork)
        assert made.last_sequence >= len(await Talk(server).events())
    check_store(left.url, left.data_dir)


async def test_code_of_a_release_works_on_a_migrated_database(left: Left, tmp_path: Path) -> None:
    """While replicas are replaced one by one, old ones meet the new schema."""
    if not release.have_commit(left.commit):
        pytest.skip(f"there is no git repository with the release, {left.commit}")
    code = release.check_out(left.commit, tmp_path)
    migrated(left)
    with release.serve_release(code, left.data_dir, left.url) as process:
        async with release.connected(process) as server:
            await check_conversations(server, left)
            await check_writing(server)
            artifacts = await release.read(server, Talk(server))
    check_store(left.url, left.data_dir)
    # And what it has written is read by today's.
    async with served(left) as server:
        check_part(artifacts, await release.read(server, Talk(server)))
        await check_writing(server)
    check_store(left.url, left.data_dir)
