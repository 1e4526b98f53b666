"""The purge: what was deleted goes in pieces, and claims stay as long as promised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Table, insert

from hansard_server.domain.errors import AgentNotFound, SessionNotFound
from hansard_server.domain.records import Claim, TurnStatus
from hansard_server.repository.api import Change, Store, WriteTx
from hansard_server.repository.sql.tables import (
    agents,
    artifacts,
    claims,
    events,
    session_heads,
    sessions,
    turns,
)
from tests.support.records import (
    AGENT,
    CLAIM,
    SESSION,
    TENANT,
    artifact,
    event,
    rows_of,
    session,
    turn,
    with_artifacts,
    with_events,
    with_turns,
)

KEEP = 1_000
CHILDREN = (events, turns, claims, artifacts, session_heads)


async def purge(store: Store, now: int, max_rows: int = 1_000) -> int:
    return await store.write(lambda tx: tx.purge_deleted(now, keep_rows_us=KEEP, max_rows=max_rows))


async def counts(store: Store, *tables: Table) -> list[int]:
    return [len(await rows_of(store, table)) for table in tables]


async def fill(store: Store) -> None:
    """Write two sessions of AGENT, the first with rows of every kind, and a stranger's."""

    def decide(tx: WriteTx) -> None:
        tx.insert_agent(AGENT, CLAIM)
        tx.insert_session(SESSION, CLAIM)
        tx.insert_session(session(2), None)
        tx.insert_agent(replace(AGENT, tenant="other"), None)
        tx.insert_session(replace(SESSION, tenant="other"), None)
        connection: Any = tx.connection  # type: ignore[attr-defined]
        for tenant in (TENANT, "other"):
            for scope in (1, 2):
                values = {
                    "tenant": tenant,
                    "session_uid": SESSION.uid,
                    "scope": scope,
                    "request_id": "request",
                    "fingerprint": b"",
                }
                connection.execute(insert(claims), values)

    await store.write(decide)
    await with_events(store, [event(n) for n in range(1, 11)])
    await with_events(store, [event(n) for n in range(1, 4)], session(2).uid)
    await with_turns(store, [turn(n, TurnStatus.COMPLETED) for n in (1, 2, 3)])
    await with_artifacts(store, [artifact(1)])


async def test_nothing_is_purged_that_was_not_deleted(store: Store) -> None:
    await fill(store)
    before = await counts(store, *CHILDREN, sessions, agents)

    assert await purge(store, 10**15) == 0

    assert await counts(store, *CHILDREN, sessions, agents) == before


async def test_rows_of_a_deleted_session_go_and_its_claim_stays(store: Store) -> None:
    await fill(store)
    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 10_000))

    assert await purge(store, 10_000) == 10 + 3 + 2 + 1 + 1
    assert await purge(store, 10_000 + KEEP - 1) == 0

    assert await counts(store, *CHILDREN, sessions) == [3, 0, 2, 0, 2, 3]
    with pytest.raises(SessionNotFound):
        await store.read(lambda tx: tx.last_sequence(TENANT, SESSION.uid))
    found = await store.read(lambda tx: tx.find_session_claim(TENANT, AGENT.uid, CLAIM.request_id))
    assert found is not None
    assert found.first_answer == SESSION
    assert not await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 11_000))

    assert await purge(store, 10_000 + KEEP) == 1
    found = await store.read(lambda tx: tx.find_session_claim(TENANT, AGENT.uid, CLAIM.request_id))
    assert found is None


@pytest.mark.parametrize("max_rows", [1, 2, 4, 7, 16, 17])
async def test_purge_goes_in_pieces(store: Store, max_rows: int) -> None:
    await fill(store)
    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 10_000))
    await store.write(lambda tx: tx.delete_session(TENANT, session(2).uid, 10_001))
    pieces: list[int] = []
    while not pieces or pieces[-1]:
        pieces.append(await purge(store, 10_000, max_rows))
        assert len(pieces) < 40

    assert max(pieces) <= max_rows
    assert sum(pieces) == 17 + 4
    assert await counts(store, *CHILDREN, sessions) == [0, 0, 2, 0, 1, 3]


async def test_sessions_of_a_deleted_agent_are_deleted_by_the_purge(store: Store) -> None:
    changes: list[Change] = []
    await fill(store)
    await store.write(lambda tx: tx.delete_agent(TENANT, AGENT.uid, 10_000))

    with store.listen(changes.append):
        assert await purge(store, 10_000) == 2
    assert {change.session_uid for change in changes if change.deleted} == {
        SESSION.uid,
        session(2).uid,
    }
    assert await purge(store, 10_000) == 17 + 4
    assert await counts(store, *CHILDREN, sessions, agents) == [0, 0, 2, 0, 1, 3, 2]


async def test_row_of_an_agent_goes_after_those_of_its_sessions(store: Store) -> None:
    await fill(store)
    await store.write(lambda tx: tx.delete_agent(TENANT, AGENT.uid, 10_000))
    late = 10_000 + KEEP
    while await purge(store, late):
        pass

    # Its sessions were deleted only now, so their rows stay, and the agent's with them.
    assert await counts(store, sessions, agents) == [3, 2]
    assert await store.read(lambda tx: tx.get_agent_by_uid(TENANT, AGENT.uid)) == AGENT
    assert await purge(store, late + KEEP, max_rows=2) == 2
    assert await counts(store, sessions, agents) == [1, 2]
    assert await purge(store, late + KEEP) == 1
    assert await counts(store, sessions, agents) == [1, 1]
    with pytest.raises(AgentNotFound):
        await store.read(lambda tx: tx.get_agent_by_uid(TENANT, AGENT.uid))


async def test_purged_claim_may_be_used_again(store: Store) -> None:
    await fill(store)
    await store.write(lambda tx: tx.delete_agent(TENANT, AGENT.uid, 10_000))
    while await purge(store, 10_000):
        pass
    while await purge(store, 10_000 + KEEP):
        pass
    claim = Claim(CLAIM.request_id, b"another")

    await store.write(lambda tx: tx.insert_agent(AGENT, claim))

    found = await store.read(lambda tx: tx.find_agent_claim(TENANT, claim.request_id))
    assert found is not None
    assert found.fingerprint == b"another"
