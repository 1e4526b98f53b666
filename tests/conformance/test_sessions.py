"""Sessions: names to rows, updates, claims, deletion."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from hansard_server.domain.errors import AgentNotFound, SessionNotFound
from hansard_server.domain.records import (
    Claimed,
    PendingCall,
    PendingKind,
    SessionHead,
    SessionRef,
    SessionView,
    TurnStatus,
)
from hansard_server.repository.api import Change, Store, WriteTx
from hansard_server.repository.commands import SessionName
from tests.support.records import (
    AGENT,
    CLAIM,
    SESSION,
    TENANT,
    event,
    session,
    set_head,
    turn,
    with_events,
    with_session,
    with_turns,
)

NAME = SessionName(tenant=TENANT, agent_key=AGENT.key, session_key=SESSION.key)


async def test_session_comes_back_as_it_was_written(store: Store) -> None:
    record = replace(SESSION, name="Ünïcode ✓ 𝄞", forked_from=b"\x00from", enabled=False)
    await with_session(store, record)

    view = await store.read(lambda tx: tx.get_session(TENANT, AGENT.key, SESSION.key))

    assert view == SessionView(record, SessionHead())


async def test_session_is_resolved_by_its_keys(store: Store) -> None:
    await with_session(store)
    await with_events(store, [event(1), event(2)])

    ref = await store.read(lambda tx: tx.resolve_session(replace(NAME, uid=SESSION.uid)))

    assert ref == SessionRef(
        tenant=TENANT,
        uid=SESSION.uid,
        agent_key=AGENT.key,
        key=SESSION.key,
        agent_uid=AGENT.uid,
        last_sequence=2,
    )
    assert await store.read(lambda tx: tx.resolve_session(NAME)) == ref
    assert await store.read(lambda tx: tx.last_sequence(TENANT, SESSION.uid)) == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"agent_key": "nobody"}, AgentNotFound),
        ({"agent_key": "nobody", "session_key": "nothing"}, AgentNotFound),
        ({"tenant": "other"}, AgentNotFound),
        ({"session_key": "nothing"}, SessionNotFound),
        ({"uid": "another-incarnation"}, SessionNotFound),
    ],
)
async def test_what_does_not_exist_is_not_found(
    store: Store, changes: dict[str, str], error: type[Exception]
) -> None:
    name = replace(NAME, **changes)
    await with_session(store)

    with pytest.raises(error):
        await store.read(lambda tx: tx.resolve_session(name))
    if name.uid is None:
        with pytest.raises(error):
            await store.read(
                lambda tx: tx.get_session(name.tenant, name.agent_key, name.session_key)
            )


async def test_session_of_a_deleted_agent_is_not_found(store: Store) -> None:
    again = replace(AGENT, uid="agent-uid-2")
    await with_session(store)
    await store.write(lambda tx: tx.delete_agent(TENANT, AGENT.uid, 9_000))

    with pytest.raises(AgentNotFound):
        await store.read(lambda tx: tx.resolve_session(NAME))
    await store.write(lambda tx: tx.insert_agent(again, None))
    with pytest.raises(SessionNotFound):
        await store.read(lambda tx: tx.resolve_session(NAME))


async def test_claim_answers_with_the_session_as_it_was_made(store: Store) -> None:
    def make(tx: WriteTx) -> None:
        tx.insert_agent(AGENT, None)
        tx.insert_session(SESSION, CLAIM)

    def change(tx: WriteTx) -> None:
        record = tx.get_session(TENANT, AGENT.key, SESSION.key).record
        tx.update_session(replace(record, name=record.name + "!", metadata=b"\xfe"))

    first = Claimed(CLAIM.fingerprint, SESSION)
    await store.write(make)
    for step in (None, change, change):
        if step is not None:
            await store.write(step)
        found = await store.read(
            lambda tx: tx.find_session_claim(TENANT, AGENT.uid, CLAIM.request_id)
        )
        assert found == first
    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 9_000))
    await store.write(lambda tx: tx.delete_agent(TENANT, AGENT.uid, 9_000))
    found = await store.read(lambda tx: tx.find_session_claim(TENANT, AGENT.uid, CLAIM.request_id))
    assert found == first
    other = await store.read(lambda tx: tx.find_session_claim(TENANT, "other", CLAIM.request_id))
    assert other is None


async def test_update_replaces_what_callers_set(store: Store) -> None:
    changed = replace(SESSION, name="New", metadata=b"", etag="etag-2", updated_at_us=5_000)
    await with_session(store)

    await store.write(lambda tx: tx.update_session(changed))

    view = await store.read(lambda tx: tx.get_session(TENANT, AGENT.key, SESSION.key))
    assert view.record == changed


async def test_no_update_is_lost_between_read_and_write(store: Store) -> None:
    await with_session(store)

    def add(letter: str) -> Callable[[WriteTx], None]:
        def decide(tx: WriteTx) -> None:
            record = tx.get_session(TENANT, AGENT.key, SESSION.key).record
            described = record.description + letter
            tx.update_session(replace(record, description=described, etag=f"etag-{described}"))

        return decide

    letters = "abcd"
    await asyncio.gather(*(store.write(add(letter)) for letter in letters))

    view = await store.read(lambda tx: tx.get_session(TENANT, AGENT.key, SESSION.key))
    assert sorted(view.record.description) == list(letters)


async def test_deleted_session_is_gone_at_once(store: Store) -> None:
    changes: list[Change] = []
    await with_session(store)
    await with_events(store, [event(1)])

    with store.listen(changes.append):
        assert await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 9_000))
        assert not await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 9_500))
        assert not await store.write(lambda tx: tx.delete_session(TENANT, "never was", 9_500))
        assert not await store.write(lambda tx: tx.delete_session("other", SESSION.uid, 9_500))

    assert changes == [Change(tenant=TENANT, session_uid=SESSION.uid, deleted=True)]
    with pytest.raises(SessionNotFound):
        await store.read(lambda tx: tx.resolve_session(NAME))
    with pytest.raises(SessionNotFound):
        await store.read(lambda tx: tx.get_session(TENANT, AGENT.key, SESSION.key))
    with pytest.raises(SessionNotFound):
        await store.read(lambda tx: tx.last_sequence(TENANT, SESSION.uid))
    with pytest.raises(SessionNotFound):
        await store.write(lambda tx: tx.update_session(SESSION))


async def test_deleted_session_frees_its_key(store: Store) -> None:
    again = replace(SESSION, uid="session-uid-2")
    await with_session(store)
    await with_events(store, [event(1)])
    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 9_000))

    await store.write(lambda tx: tx.insert_session(again, None))

    ref = await store.read(lambda tx: tx.resolve_session(NAME))
    assert (ref.uid, ref.last_sequence) == (again.uid, 0)


PENDING = PendingCall(tool_call_id="call_1", kind=PendingKind.APPROVAL, expire_at_us=9)


async def test_deletion_interrupts_the_unfinished_turns_of_that_session(store: Store) -> None:
    other = session(2)
    await with_session(store)
    await store.write(lambda tx: tx.insert_session(other, None))
    elsewhere = turn(1, TurnStatus.RUNNING, session_uid=other.uid, fence=4)
    mine = [
        turn(1, TurnStatus.COMPLETED, ended_at_us=4_000, fence=1),
        turn(2, TurnStatus.REQUIRES_ACTION, pending_calls=(PENDING,), fence=3),
        turn(3, TurnStatus.QUEUED),
    ]
    await with_turns(store, mine)
    await with_turns(store, [elsewhere])

    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 9_000))

    ended = [
        mine[0],
        *(
            replace(
                unfinished,
                status=TurnStatus.INTERRUPTED,
                ended_at_us=9_000,
                fence=unfinished.fence + 1,
                pending_calls=(),
            )
            for unfinished in mine[1:]
        ),
    ]
    for expected in (*ended, elsewhere):
        where = (TENANT, expected.session_uid, expected.id)
        found = await store.write(lambda tx, where=where: tx.get_turn(*where))  # type: ignore[misc]
        assert found == expected


# Expiry -------------------------------------------------------------------------------------------


MINUTE = 60_000_000


async def expiry(store: Store) -> int | None:
    view = await store.read(lambda tx: tx.get_session(TENANT, AGENT.key, SESSION.key))
    return view.head.expire_at_us


async def test_session_expires_its_minutes_after_it_was_active(store: Store) -> None:
    await with_session(store, replace(SESSION, tti_minutes=5))
    assert await expiry(store) == SESSION.created_at_us + 5 * MINUTE

    await store.write(lambda tx: set_head(tx, SESSION.uid, last_active_at=7_000))
    await store.write(lambda tx: tx.update_session(replace(SESSION, tti_minutes=2)))
    assert await expiry(store) == 7_000 + 2 * MINUTE

    await store.write(lambda tx: tx.update_session(SESSION))
    assert await expiry(store) is None


@pytest.mark.parametrize("status", [TurnStatus.RUNNING, TurnStatus.QUEUED])
async def test_update_of_a_busy_session_does_not_let_it_expire(
    store: Store, status: TurnStatus
) -> None:
    await with_session(store)
    await with_turns(store, [turn(1, status)])

    await store.write(lambda tx: tx.update_session(replace(SESSION, tti_minutes=2)))

    assert await expiry(store) is None


async def test_expired_sessions_are_found_oldest_first(store: Store) -> None:
    await with_session(store)  # never expires
    for number, minutes in ((1, 3), (2, 1), (3, 2), (4, 9)):
        record = session(number, tti_minutes=minutes)
        await store.write(lambda tx, record=record: tx.insert_session(record, None))  # type: ignore[misc]
    other = replace(SESSION, tenant="other", tti_minutes=1, created_at_us=0)
    await store.write(lambda tx: tx.insert_session(other, None))
    now = 2_000 + 3 * MINUTE + 1

    found = await store.read(lambda tx: tx.find_expired_sessions(now, 10))
    assert list(found) == [
        ("other", SESSION.uid),
        (TENANT, "session-002"),
        (TENANT, "session-003"),
        (TENANT, "session-001"),
    ]
    assert len(await store.read(lambda tx: tx.find_expired_sessions(now, 2))) == 2
    await store.write(lambda tx: tx.delete_session(TENANT, "session-002", now))
    found = await store.read(lambda tx: tx.find_expired_sessions(now, 10))
    assert (TENANT, "session-002") not in found


async def test_expired_session_is_deleted_only_if_it_still_is_expired(store: Store) -> None:
    await with_session(store, replace(SESSION, tti_minutes=1))
    expire_at = await expiry(store)
    assert expire_at is not None

    async def delete(now: int) -> bool:
        return await store.write(lambda tx: tx.delete_expired_session(TENANT, SESSION.uid, now))

    assert not await delete(expire_at - 1)
    await store.write(lambda tx: set_head(tx, SESSION.uid, expire_at=None))
    assert not await delete(expire_at)
    await store.write(lambda tx: set_head(tx, SESSION.uid, expire_at=expire_at))
    assert await delete(expire_at)
    assert not await delete(expire_at)
