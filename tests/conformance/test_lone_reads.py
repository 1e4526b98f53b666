"""What a command that is alone reads by one statement is what several read by three, on SQLite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from hansard_server.domain.clock import now_us
from hansard_server.domain.records import TurnStatus
from hansard_server.repository.commands import ClaimScope, Command, WhenBusy
from hansard_server.repository.sql import batch_reads
from hansard_server.repository.sql.batch_reads import BatchSessions
from hansard_server.repository.sql.engine import writing
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.trips import Trip
from tests.support.commands import NAME, accept, append, claim, draft, finish, tool_input
from tests.support.records import SESSION, TENANT, session, with_session

OTHER = replace(NAME, session_key=session(7).key)
NAMES = {
    "there": NAME,
    "busy": OTHER,
    "deleted": replace(NAME, session_key=session(8).key),
    "no session": replace(NAME, session_key="nobody"),
    "no agent": replace(NAME, agent_key="nobody"),
    "of another tenant": replace(NAME, tenant="tenant-9"),
    "its incarnation": replace(NAME, uid=SESSION.uid),
    "another incarnation": replace(NAME, uid="another"),
}
COMMANDS: dict[str, Any] = {
    "append": lambda **of: append(draft(), draft(), **of),
    "upload": lambda **of: append(scope=ClaimScope.UPLOAD_ARTIFACTS, **of),
    "append with a given id": lambda **of: append(draft(given_id=True), **of),
    "append of a call": lambda **of: append(tool_input("call"), **of),
    "input": accept,
    "steering input": lambda **of: accept(when_busy=WhenBusy.STEER, **of),
}


@pytest.fixture
def database() -> str:
    """Return the kind of database."""
    return "sqlite"


@pytest.fixture(autouse=True)
async def sessions(store: SqlStore) -> None:
    """Make a session with events and turns that have ended, a busy one and a deleted one."""
    await with_session(store)
    for number in (7, 8):
        made = session(number)
        await store.write(lambda tx, made=made: tx.insert_session(made, None))  # type: ignore[misc]
    for name, key in ((NAME, "of here"), (OTHER, "of there")):
        await store.submit(append(draft(), draft(), session=name, claim=claim(f"append {key}")))
        turn = (await store.submit(accept(session=name, claim=claim(f"input {key}")))).turn
        if name is NAME:
            await store.submit(finish(turn, status=TurnStatus.COMPLETED))
    await store.submit(accept(session=OTHER))
    await store.write(lambda tx: tx.delete_session(TENANT, session(8).uid, now_us()))
    disabled = replace(session(7), enabled=False)
    await store.write(lambda tx: tx.update_session(disabled))


def read(engine: Engine, command: Command) -> tuple[object, object, object]:
    """Return what is read for the command: states, what names mean, and whether it is gone."""
    sessions = BatchSessions(sqlite=True, clock=lambda: 1, skip_locked=False, known=None)
    with writing(engine).begin() as connection:
        sessions.read(Trip(connection), [command])
    named = {name: repr(meant) for name, meant in sessions.named.items()}
    return sessions.states, named, sessions.is_gone(command)


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_same_is_read(engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    for place, name in NAMES.items():
        for request_id in (None, "append of here", "input of there", "never used"):
            made = None if request_id is None else claim(request_id)
            command = COMMANDS[kind](session=name, claim=made)
            found = read(engine, command)
            with monkeypatch.context() as patched:
                patched.setattr(batch_reads, "_needs_claim_alone", lambda _: False)
                assert found == read(engine, command), (place, request_id)
            states, _, _ = found
            assert bool(states) == (place in {"there", "busy", "its incarnation"})


def test_commands_that_need_no_more_are_read_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone: list[str] = []
    read_lone: Any = BatchSessions._read_lone

    def noting(sessions: BatchSessions, trip: Trip, command: Command) -> None:
        lone.append(type(command).__name__)
        read_lone(sessions, trip, command)

    monkeypatch.setattr(BatchSessions, "_read_lone", noting)
    for make in COMMANDS.values():
        read(engine, make())
    assert lone == ["AppendDrafts", "AppendDrafts", "AcceptInput", "AcceptInput"]
