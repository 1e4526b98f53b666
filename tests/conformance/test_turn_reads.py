"""Turns as reads see them, and their leases."""

from __future__ import annotations

import asyncio
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from hansard_server.domain.errors import TurnNotFound
from hansard_server.domain.limits import KIB, MIB
from hansard_server.domain.records import (
    OpenCall,
    PendingCall,
    PendingKind,
    PendingState,
    TurnStatus,
    Usage,
)
from hansard_server.repository.api import Store, TurnScan, WriteTx
from hansard_server.repository.sql.engine import database_now_us
from hansard_server.repository.sql.tables import turns
from tests.support.records import (
    SESSION,
    TENANT,
    rows_of,
    session,
    turn,
    with_session,
    with_turns,
)

FAR = 2**53


async def test_turn_comes_back_as_it_was_written(store: Store) -> None:
    written = turn(
        1,
        TurnStatus.FAILED,
        first_sequence=3,
        last_sequence=2**40,
        pending_calls=(
            PendingCall(tool_call_id="call_1", kind=PendingKind.APPROVAL, expire_at_us=2**50),
            PendingCall(
                tool_call_id="call_2",
                kind=PendingKind.CLIENT_TOOL,
                expire_at_us=1,
                override_json='{"ü":1}',
                state=PendingState.BEGUN,
            ),
        ),
        error=b"\xff",
        attempt=3,
        usage=Usage(2**40, 2, 3),
        open_calls=(OpenCall("call_1", 'a "name"', "ünï"), OpenCall("call_2", "", "")),
        fence=7,
        started_at_us=4_000,
        ended_at_us=5_000,
    )
    await with_session(store)
    await with_turns(store, [written])

    assert await store.read(lambda tx: tx.get_turn(TENANT, SESSION.uid, "trn_1")) == written


@pytest.mark.parametrize(
    "name",
    [
        (TENANT, SESSION.uid, "trn_9"),
        (TENANT, "another", "trn_1"),
        ("other", SESSION.uid, "trn_1"),
    ],
)
async def test_turn_of_elsewhere_is_not_found(store: Store, name: tuple[str, str, str]) -> None:
    await with_session(store)
    await with_turns(store, [turn(1, TurnStatus.COMPLETED)])

    with pytest.raises(TurnNotFound):
        await store.read(lambda tx: tx.get_turn(*name))


@pytest.mark.parametrize(
    ("changes", "expected", "resume_at"),
    [
        ({}, [1, 2, 3, 4], None),
        ({"descending": True}, [4, 3, 2, 1], None),
        ({"after_number": 2}, [3, 4], None),
        ({"after_number": 3, "descending": True}, [2, 1], None),
        ({"limit": 2}, [1, 2], 2),
        ({"limit": 1, "descending": True}, [4], 4),
        ({"limit": 4}, [1, 2, 3, 4], None),
        ({"after_number": 4}, [], None),
        ({"after_number": 9}, [], None),
        ({"after_number": 1, "descending": True}, [], None),
        ({"statuses": {TurnStatus.FAILED}}, [2], None),
        ({"statuses": {TurnStatus.FAILED, TurnStatus.RUNNING}}, [2, 4], None),
        ({"statuses": {TurnStatus.QUEUED}}, [], None),
        ({"statuses": {TurnStatus.FAILED}, "limit": 1}, [2], 2),
        ({"max_rows": 3}, [1, 2, 3], 3),
        ({"max_rows": 3, "descending": True}, [4, 3, 2], 2),
        ({"max_rows": 1, "statuses": {TurnStatus.FAILED}}, [], 1),
        ({"max_rows": 2, "statuses": {TurnStatus.FAILED}, "descending": True}, [], 3),
        ({"max_bytes": 0}, [1], 1),
        ({"max_bytes": 2 * (256 + 5)}, [1, 2], 2),
        ({"max_bytes": 2 * (256 + 5) - 1}, [1], 1),
        ({"max_bytes": 4 * (256 + 5)}, [1, 2, 3, 4], None),
    ],
)
async def test_turns_are_listed_by_number(
    store: Store, changes: dict[str, Any], expected: list[int], resume_at: int | None
) -> None:
    states = {4: TurnStatus.RUNNING, 2: TurnStatus.FAILED}
    made = [turn(n, states.get(n, TurnStatus.COMPLETED)) for n in (4, 2, 1, 3)]
    await with_session(store)
    await with_turns(store, made)
    scan = replace(TurnScan(limit=10, max_bytes=MIB, max_rows=100), **changes)

    page = await store.read(lambda tx: tx.scan_turns(TENANT, SESSION.uid, scan))

    assert [record.number for record in page.turns] == expected
    assert page.resume_at == resume_at
    assert set(page.turns) <= set(made)


@pytest.mark.parametrize("statuses", [set(), {TurnStatus.FAILED}])
async def test_inputs_of_the_page_alone_are_read(store: Store, statuses: set[TurnStatus]) -> None:
    await with_session(store)
    for number in range(1, 31):
        await with_turns(store, [turn(number, TurnStatus.COMPLETED, input=bytes(MIB))])
    scan = TurnScan(limit=100, max_bytes=2 * MIB + KIB, max_rows=100, statuses=frozenset(statuses))

    tracemalloc.start()
    page = await store.read(lambda tx: tx.scan_turns(TENANT, SESSION.uid, scan))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(page.turns) == (0 if statuses else 2)
    assert peak < 8 * MIB


async def test_queue_position_counts_the_waiting_ones(store: Store) -> None:
    states = [
        TurnStatus.COMPLETED,
        TurnStatus.RUNNING,
        TurnStatus.QUEUED,
        TurnStatus.INTERRUPTED,
        TurnStatus.QUEUED,
        TurnStatus.QUEUED,
    ]
    await with_session(store)
    await with_turns(store, [turn(n, state) for n, state in enumerate(states, 1)])

    async def position(number: int) -> int:
        return await store.read(lambda tx: tx.queue_position(TENANT, SESSION.uid, number))

    assert [await position(number) for number in (3, 5, 6)] == [1, 2, 3]


async def test_unfinished_turns_are_found_by_their_lease(store: Store) -> None:
    await with_session(store)
    for number, (status, lease_until) in enumerate(
        [
            (TurnStatus.RUNNING, FAR),
            (TurnStatus.RUNNING, 2_000),
            (TurnStatus.RUNNING, 1_000),
            (TurnStatus.REQUIRES_ACTION, 0),
            (TurnStatus.COMPLETED, 0),
        ]
    ):
        record = session(number)
        await store.write(lambda tx, record=record: tx.insert_session(record, None))  # type: ignore[misc]
        made = turn(1, status, id=f"trn_{number}", session_uid=record.uid)
        await with_turns(store, [made], owner="owner", lease_until=lease_until)

    async def found(limit: int, *, expired_only: bool) -> list[str]:
        records = await store.read(
            lambda tx: tx.find_unfinished_turns(limit, expired_only=expired_only)
        )
        return [record.id for record in records]

    assert await found(10, expired_only=True) == ["trn_2", "trn_1"]
    assert await found(10, expired_only=False) == ["trn_2", "trn_1", "trn_0"]
    assert await found(1, expired_only=False) == ["trn_2"]


async def test_turns_that_wait_too_long_are_found(store: Store) -> None:
    await with_session(store)
    far = 2**52
    for number, (status, ends) in enumerate(
        [
            (TurnStatus.REQUIRES_ACTION, (far, 3_000)),
            (TurnStatus.REQUIRES_ACTION, (far,)),
            (TurnStatus.REQUIRES_ACTION, (2_000,)),
            (TurnStatus.RUNNING, (1_000,)),
        ]
    ):
        record = session(number)
        await store.write(lambda tx, record=record: tx.insert_session(record, None))  # type: ignore[misc]
        pending = tuple(
            PendingCall(tool_call_id=f"call_{end}", kind=PendingKind.APPROVAL, expire_at_us=end)
            for end in ends
        )
        made = turn(1, status, id=f"trn_{number}", session_uid=record.uid, pending_calls=pending)
        await with_turns(store, [made])

    found = await store.read(lambda tx: tx.find_expired_calls(10))
    assert [turn_id for _, _, turn_id in found] == ["trn_2", "trn_0"]
    assert len(await store.read(lambda tx: tx.find_expired_calls(1))) == 1


async def test_idle_queues_are_sessions_where_only_waiting_turns_are(store: Store) -> None:
    queued, running = TurnStatus.QUEUED, TurnStatus.RUNNING
    await with_session(store)
    for number, states in enumerate([[queued, queued], [running, queued], [queued], [queued]]):
        record = session(number)
        await store.write(lambda tx, record=record: tx.insert_session(record, None))  # type: ignore[misc]
        made = [turn(n, s, id=f"trn_{n}", session_uid=record.uid) for n, s in enumerate(states, 1)]
        await with_turns(store, made)
    await store.write(lambda tx: tx.delete_session(TENANT, "session-003", 9_000))

    found = await store.read(lambda tx: tx.find_idle_queues(10))

    assert sorted(found) == [(TENANT, "session-000"), (TENANT, "session-002")]
    assert len(await store.read(lambda tx: tx.find_idle_queues(1))) == 1


async def test_leases_are_renewed_for_their_owner_alone(store: Store) -> None:
    await with_session(store)
    await with_turns(store, [turn(1, TurnStatus.RUNNING)], owner="me", lease_until=1_000)
    await with_turns(store, [turn(2, TurnStatus.RUNNING)], owner="you", lease_until=1_000)
    await with_turns(store, [turn(3, TurnStatus.COMPLETED)])
    await with_turns(store, [turn(4, TurnStatus.RUNNING)], owner="me", lease_until=1_000)

    def renew(tx: WriteTx) -> int:
        connection: Any = tx.connection  # type: ignore[attr-defined]
        before = connection.execute(select(database_now_us())).scalar_one()
        tx.renew_leases("me", [(TENANT, SESSION.uid, f"trn_{n}") for n in (1, 2, 3)], 30.5)
        return int(before)

    before = await store.write(renew)

    leases = {row["id"]: row["lease_until"] for row in await rows_of(store, turns)}
    assert before + 30_500_000 <= leases["trn_1"] <= before + 40_000_000
    assert leases["trn_2"] == 1_000
    assert leases["trn_3"] is None
    # The owner has it without knowing: nobody works on it, so its lease must run out.
    assert leases["trn_4"] == 1_000


async def test_database_clock_is_the_machine_clock_nearly(store: Store) -> None:
    def look(tx: WriteTx) -> int:
        connection: Any = tx.connection  # type: ignore[attr-defined]
        return int(connection.execute(select(database_now_us())).scalar_one())

    first = await store.write(look)
    await asyncio.sleep(0.02)
    second = await store.write(look)

    assert 1_600_000_000_000_000 < first < second < first + 60_000_000
