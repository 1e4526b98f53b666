"""What is durable takes one round trip to PostgreSQL, in a session that this process has left last,
and two in others: one to read under locks, one to commit.

And what becomes of a commit whose answer is lost.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import make_url

from hansard_server.domain.errors import EventAlreadyExists, StoreUnavailable
from hansard_server.repository.commands import Command, SessionName, WhenBusy
from hansard_server.repository.sql.store import SqlStore
from tests.support.commands import NAME, accept, append, claim, draft, finish, step
from tests.support.databases import Databases
from tests.support.records import AGENT, SESSION, TENANT, session, with_session
from tests.support.relay import Relay, relayed

BEGINS = b"\0BEGIN ISOLATION LEVEL READ COMMITTED\0"
COMMITS = b"\0COMMIT\0"
"""As a batch says them; the driver says them for others, by another message."""
SYNCS = b"S\0\0\0\4"
"""With it a batch that is one round trip commits."""


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """Give a database's URL."""
    url = databases.migrated("postgresql")
    yield url
    databases.drop(url)


@pytest.fixture
def relay_and_url(url: str) -> Iterator[tuple[str, Relay]]:
    """Give the database's URL through a relay, and the relay."""
    if not str(make_url(url).query.get("host", "")).startswith("/"):
        pytest.skip("the PostgreSQL server of HANSARD_TEST_POSTGRES_URL has no Unix socket")
    # The path of a socket may have some hundred characters only.
    with tempfile.TemporaryDirectory() as folder, relayed(url, Path(folder) / "pg") as through:
        yield through


@pytest.fixture
async def counted(relay_and_url: tuple[str, Relay]) -> AsyncIterator[Counted]:
    """Give a store with one session, whose round trips are counted."""
    url, relay = relay_and_url
    relay.counted = BEGINS
    store = await SqlStore.open(url)
    await with_session(store)
    counted = Counted(store, relay)
    # The writer's connection is made.
    other = session(7)
    await store.write(lambda tx: tx.insert_session(other, None))
    await store.submit(append(session=replace(NAME, session_key=other.key)))
    yield counted
    await store.close()


class Counted:
    """A store, and the round trips of each command."""

    def __init__(self, store: SqlStore, relay: Relay) -> None:
        self.store = store
        self.relay = relay

    async def submit(self, command: Command) -> tuple[object, int]:
        """Return the command's result, and how many round trips it took."""
        before = self.relay.round_trips
        result = await self.store.submit(command)
        return result, self.relay.round_trips - before


async def test_an_append_is_one(counted: Counted) -> None:
    # The session's uid is not known yet: its name is looked up first.
    assert (await counted.submit(append(claim=claim("0"))))[1] == 3
    for number in range(1, 12):
        drafts = [draft(b"%d" % n, given_id=n == 2) for n in range(number)]
        # psycopg prepares a statement when it has run it some times, without another round trip.
        assert (await counted.submit(append(*drafts, claim=claim(f"{number}"))))[1] == 1


async def test_a_name_with_its_uid_is_not_looked_up_first(counted: Counted) -> None:
    record = session(8)
    await counted.store.write(lambda tx: tx.insert_session(record, None))
    name: SessionName = replace(NAME, session_key=record.key, uid=record.uid)
    assert (await counted.submit(append(session=name)))[1] == 2


async def test_each_step_of_a_turn_is_one(counted: Counted) -> None:
    await counted.submit(append())
    for number in range(8):
        accepted, trips = await counted.submit(accept(claim=claim(f"r{number}")))
        turn = accepted.turn  # type: ignore[attr-defined]
        steps = [await counted.submit(step(turn, draft(), draft())) for _ in range(3)]
        ended = await counted.submit(finish(turn, draft()))
        assert (trips, [t for _, t in steps], ended[1]) == (1, [1, 1, 1], 1)


async def test_a_repeat_takes_more(counted: Counted) -> None:
    await counted.submit(append())
    accepted, _ = await counted.submit(accept(claim=claim("r")))
    again, trips = await counted.submit(accept(claim=claim("r")))
    assert again.turn == accepted.turn  # type: ignore[attr-defined]
    # Its request_id is taken; what there is; the turn that it made; and the end.
    assert trips == 4


async def test_what_somebody_else_writes_to_takes_two(counted: Counted, url: str) -> None:
    """Two processes write in turns: the first one to assume something wrong soon does not."""
    await counted.submit(append())
    other = await SqlStore.open(url)
    trips = []
    for _ in range(6):
        await other.submit(append())
        trips.append((await counted.submit(append()))[1])
    assert trips == [3, 2, 2, 2, 2, 2]
    await other.close()
    # Alone again it sees twice that it would have been right.
    assert [(await counted.submit(append()))[1] for _ in range(4)] == [2, 2, 1, 1]


async def test_a_commit_that_was_not_heard_of_is_no_refusal(counted: Counted) -> None:
    store, relay = counted.store, counted.relay

    async def outcomes(*commands: Command, words: bytes = SYNCS) -> list[object]:
        relay.swallow(words)
        answers = await asyncio.gather(*map(store.submit, commands), return_exceptions=True)
        assert relay.has_swallowed
        return answers

    # The session is not known yet.
    [unknown] = await outcomes(append(expected_last_sequence=0), words=COMMITS)
    assert isinstance(unknown, StoreUnavailable)
    assert "not known" in str(unknown)
    assert await last_sequence(store) == 1
    # Who gave it an id, which may be asked for again, is answered.
    claimed = append(claim=claim("r"), expected_last_sequence=1)
    [appended] = await outcomes(claimed)
    assert appended == await store.submit(claimed)
    assert await last_sequence(store) == 2
    [unknown] = await outcomes(accept(when_busy=WhenBusy.REJECT))
    assert isinstance(unknown, StoreUnavailable)
    # And a turn's owner is told that its step is on record.
    view = await store.read(lambda tx: tx.get_session(TENANT, AGENT.key, SESSION.key))
    turn_id = view.head.unfinished_turn_id
    assert turn_id is not None
    turn = await store.read(lambda tx: tx.get_turn(TENANT, SESSION.uid, turn_id))
    for words, sequence in ((COMMITS, 4), (SYNCS, 8)):
        [known] = await outcomes(step(turn), words=words)
        assert isinstance(known, EventAlreadyExists)
        assert await last_sequence(store) == sequence
        # It is seen several times to be as it is known, before that is taken for granted again.
        for _ in range(3):
            await store.submit(step(turn))


async def test_what_was_rolled_back_with_its_connection_is_done_again(counted: Counted) -> None:
    # In a session that is not known the commit is a trip of its own.
    counted.relay.swallow(BEGINS)
    appended = await counted.store.submit(append(expected_last_sequence=0))
    assert counted.relay.has_swallowed
    assert appended.events[0][1] == 1
    assert await last_sequence(counted.store) == 1


async def last_sequence(store: SqlStore) -> int:
    return await store.read(lambda tx: tx.last_sequence(TENANT, SESSION.uid))
