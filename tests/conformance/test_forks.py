"""Forks in the store: one moment of the source, copies that nobody sees, and what is purged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from hansard_server.domain.errors import SessionNotFound
from hansard_server.domain.records import EventType, SessionRecord, SessionStatus, TurnStatus, Usage
from hansard_server.repository.api import Alteration, Store, WriteTx
from hansard_server.repository.commands import SessionName
from hansard_server.repository.forks import ForkLost, ForkPlan, ForkRef, ForkTotals, SourceChanged
from hansard_server.repository.sql import forks as sql_forks
from hansard_server.repository.sql import tables
from tests.support.commands import NAME
from tests.support.records import (
    AGENT,
    SESSION,
    TENANT,
    artifact,
    event,
    rows_of,
    turn,
    with_artifacts,
    with_events,
    with_session,
    with_turns,
)

REF = ForkRef(tenant=TENANT, uid="fork-uid", source_uid=SESSION.uid, lease_s=30.0)
FORK = replace(SESSION, uid=REF.uid, key="fork", created_at_us=9_000, updated_at_us=9_000)
COUNT = 10


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_forks, "PIECE_MAX_EVENTS", 4)
    monkeypatch.setattr(sql_forks, "_PLANNED_AT_ONCE", 3)


async def with_source(store: Store) -> None:
    await with_session(store)
    await with_events(store, [event(n) for n in range(1, COUNT + 1)])


async def plan(store: Store, through: int = COUNT) -> ForkPlan:
    return await store.read(lambda tx: tx.plan_fork(tx.resolve_session(NAME), through))


async def begin(store: Store, request_id: str | None = None, uid: str = REF.uid) -> bool:
    ref = replace(REF, uid=uid)
    return await store.write(lambda tx: tx.begin_fork(ref, AGENT.uid, request_id))


async def copy(store: Store, planned: ForkPlan, start: int, end: int) -> None:
    sequences = planned.sequences[start:end]
    await store.write(lambda tx: tx.copy_fork_events(REF, sequences, start + 1))


async def finish(store: Store, count: int, record: SessionRecord = FORK, **changes: Any) -> None:
    values: dict[str, Any] = {
        "last_sequence": count,
        "last_event_at_us": 100,
        "turn_count": 0,
        "usage": Usage(),
        "artifact_files": 0,
        "artifact_bytes": 0,
    }
    totals = ForkTotals(**(values | changes))
    await store.write(lambda tx: tx.finish_fork(record, None, totals, None))


async def alter(store: Store, sequence: int, alteration: Alteration) -> None:
    await store.write(
        lambda tx: tx.alter_event(TENANT, SESSION.uid, f"aev_{sequence}", alteration, 77)
    )


async def forked_events(store: Store) -> list[dict[str, Any]]:
    rows = [row for row in await rows_of(store, tables.events) if row["session_uid"] == REF.uid]
    return sorted(rows, key=lambda row: row["sequence"])


async def test_pieces_are_bounded_by_count_and_by_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_source(store)
    assert list((await plan(store)).ends) == [4, 8, 10]
    assert list((await plan(store, 4)).ends) == [4]
    assert list((await plan(store, 0)).ends) == []
    monkeypatch.setattr(
        sql_forks, "PIECE_MAX_BYTES", 20
    )  # two payloads, and one byte short of three
    assert list((await plan(store)).ends) == [2, 4, 6, 8, 10]
    monkeypatch.setattr(sql_forks, "PIECE_MAX_BYTES", 1)
    assert list((await plan(store)).ends) == list(range(1, 11))


async def test_fork_is_there_when_it_is_whole(store: Store) -> None:
    await with_source(store)
    planned = await plan(store)
    assert await begin(store)
    await copy(store, planned, 0, 4)
    name = SessionName(tenant=TENANT, agent_key=AGENT.key, session_key=FORK.key)
    with pytest.raises(SessionNotFound):
        await store.read(lambda tx: tx.resolve_session(name))
    with pytest.raises(SessionNotFound):
        await store.read(lambda tx: tx.last_sequence(TENANT, REF.uid))
    assert len(await store.read(lambda tx: tx.get_payloads(TENANT, REF.uid, [1, 4, 5]))) == 2
    await copy(store, planned, 4, 10)
    await finish(store, 10, usage=Usage(1, 2, 3))
    view = await store.read(lambda tx: tx.get_session(TENANT, AGENT.key, FORK.key))
    assert (view.head.last_sequence, view.head.status) == (10, SessionStatus.IDLE)
    assert view.head.usage == Usage(1, 2, 3)
    source = [row for row in await rows_of(store, tables.events) if row["session_uid"] != REF.uid]
    copies = await forked_events(store)
    for row in (*source, *copies):
        del row["session_uid"]
    assert copies == sorted(source, key=lambda row: row["sequence"])
    assert await rows_of(store, tables.forks) == []


async def test_fork_is_the_source_at_the_moment_of_its_plan(store: Store) -> None:
    await with_source(store)
    await alter(store, 2, Alteration.HIDE)
    await alter(store, 3, Alteration.DELETE)
    planned = await plan(store, 9)
    assert list(planned.sequences) == [1, 4, 5, 6, 7, 8, 9]
    assert planned.last_event_id == "aev_9"
    await begin(store)
    await copy(store, planned, 0, 4)
    await alter(store, 1, Alteration.DELETE)  # copied before
    await alter(store, 2, Alteration.UNHIDE)
    await alter(store, 8, Alteration.HIDE)
    await with_events(store, [event(11)])
    await copy(store, planned, 4, 7)
    await finish(store, 7)
    copies = await forked_events(store)
    assert [row["id"] for row in copies] == [f"aev_{n}" for n in planned.sequences]
    assert [row["sequence"] for row in copies] == list(range(1, 8))
    assert all(row["payload"] and not row["hide_reason"] for row in copies)


async def test_event_that_is_deleted_before_it_is_copied(store: Store) -> None:
    await with_source(store)
    planned = await plan(store)
    await begin(store)
    await copy(store, planned, 0, 4)
    await alter(store, 6, Alteration.DELETE)
    with pytest.raises(SourceChanged):
        await copy(store, planned, 4, 8)
    assert len(await forked_events(store)) == 4
    assert 6 not in (await plan(store)).sequences


async def test_source_that_is_deleted_and_purged(store: Store) -> None:
    await with_source(store)
    planned = await plan(store)
    await begin(store)
    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, 5_000))
    await copy(store, planned, 0, 4)  # what is hidden is not lost yet
    await purge(store)
    with pytest.raises(SourceChanged):
        await copy(store, planned, 4, 8)


async def purge(store: Store, max_rows: int = 3) -> int:
    """Purge until nothing is left; return how often."""

    def decide(tx: WriteTx) -> int:
        return tx.purge_deleted(6_000, keep_rows_us=10**9, max_rows=max_rows)

    rounds = 0
    while removed := await store.write(decide):
        assert removed <= max_rows
        rounds += 1
    return rounds


async def test_fork_that_is_given_up_is_purged(store: Store) -> None:
    await with_source(store)
    await with_artifacts(store, [artifact(1)])
    await with_turns(store, [turn(1, TurnStatus.COMPLETED)])
    planned = await plan(store)
    await begin(store, "r")
    await copy(store, planned, 0, 8)
    await store.write(lambda tx: tx.copy_fork_artifacts(REF, ["art_1"]))
    assert await purge(store) == 0
    assert not await begin(store, "r", "another")
    await store.write(lambda tx: tx.give_up_fork(TENANT, REF.uid))
    assert await begin(store, "r", "another")
    with pytest.raises(ForkLost):
        await copy(store, planned, 8, 10)
    with pytest.raises(ForkLost):
        await finish(store, 10)
    assert await purge(store) == 4  # 8 events, an artifact, the fork itself: 10 rows
    assert await forked_events(store) == []
    assert [row["session_uid"] for row in await rows_of(store, tables.forks)] == ["another"]
    assert len(await rows_of(store, tables.events)) == COUNT
    assert len(await rows_of(store, tables.artifacts)) == 1


async def test_fork_that_shows_no_life_is_purged(store: Store) -> None:
    await with_source(store)
    planned = await plan(store)
    await begin(store, "r")
    await copy(store, planned, 0, 8)

    def age(tx: WriteTx) -> None:
        tx.connection.execute(  # type: ignore[attr-defined]
            update(tables.forks).values(alive_until=tables.forks.c.alive_until - 30_000_000)
        )

    await store.write(age)
    # A sign of life, late, and before anybody gave it up.
    await copy(store, planned, 8, 10)
    assert await purge(store) == 0
    await store.write(age)
    assert await begin(store, "r", "another")
    await purge(store)
    with pytest.raises(ForkLost):
        await finish(store, 10)
    assert await forked_events(store) == []


async def test_a_process_that_is_alone_gives_up_what_it_finds(store: Store) -> None:
    await with_source(store)
    await begin(store, "r")
    await store.write(lambda tx: tx.give_up_all_forks())
    assert await begin(store, "r", "another")
    await purge(store)
    assert [row["session_uid"] for row in await rows_of(store, tables.forks)] == ["another"]


async def test_turns_are_copied_as_they_ended(store: Store) -> None:
    await with_session(store)
    ids = [None, "trn_1", "trn_1", None, "trn_2", "trn_2", "trn_3"]
    await with_events(store, [event(n, turn_id=id_) for n, id_ in enumerate(ids, 1)])
    used = {"usage": Usage(10, 20, 5), "error": b"error", "attempt": 2, "ended_at_us": 5_000}
    await with_turns(
        store,
        [
            turn(1, TurnStatus.FAILED, input_event_id="aev_2", last_sequence=3, **used),
            turn(2, TurnStatus.COMPLETED, last_sequence=6, usage=Usage(1, 2, 3)),
            turn(3, TurnStatus.RUNNING, last_sequence=7),
            turn(4, TurnStatus.QUEUED),
        ],
    )
    await store.write(lambda tx: tx.alter_event(TENANT, SESSION.uid, "aev_1", Alteration.HIDE, 7))
    planned = await plan(store, 7)
    assert [(t.id, t.number, t.first_sequence, t.last_sequence) for t in planned.turns] == [
        ("trn_1", 1, 1, 2),
        ("trn_2", 2, 4, 5),
    ]
    assert planned.cut_turn is not None
    assert planned.cut_turn[0].number == 3
    await begin(store)
    usage = await store.write(lambda tx: tx.copy_fork_turns(REF, planned.turns))
    assert usage == Usage(11, 22, 8)
    await copy(store, planned, 0, 6)
    await finish(store, 6, turn_count=2, usage=usage)
    first = await store.read(lambda tx: tx.get_turn(TENANT, REF.uid, "trn_1"))
    assert (first.status, first.input, first.error, first.attempt) == (
        TurnStatus.FAILED,
        b"input",
        b"error",
        2,
    )
    assert (first.first_sequence, first.last_sequence, first.ended_at_us) == (1, 2, 5_000)
    # Its input event is none of the copied ones.
    assert (await store.read(lambda tx: tx.get_turn(TENANT, REF.uid, "trn_2"))).input == b""
    cut_in_the_middle = await plan(store, 5)
    assert [t.id for t in cut_in_the_middle.turns] == ["trn_1"]
    assert cut_in_the_middle.cut_turn is not None
    assert cut_in_the_middle.cut_turn[0].id == "trn_2"


async def test_open_calls(store: Store) -> None:
    await with_session(store)
    kinds = [
        (EventType.TOOL_INPUT, "a"),
        (EventType.TOOL_INPUT, "b"),
        (EventType.TOOL_OUTPUT, "a"),
        (EventType.TOOL_OUTPUT, "b"),
    ]
    records = [event(n, type=t, tool_call_id=c) for n, (t, c) in enumerate(kinds, 1)]
    await with_events(store, records)
    assert [list((await plan(store, n)).open_calls) for n in range(1, 5)] == [
        ["a"],
        ["a", "b"],
        ["b"],
        [],
    ]


async def test_artifacts_share_their_bytes(store: Store) -> None:
    await with_source(store)
    await with_artifacts(store, [artifact(1, expire_at_us=1), artifact(2), artifact(3)])
    planned = await plan(store)
    assert planned.artifact_ids == {"art_1", "art_2", "art_3"}
    await begin(store)
    ids = ["art_1", "art_2"]
    assert await store.write(lambda tx: tx.copy_fork_artifacts(REF, ids)) == 200
    await finish(store, 0, artifact_files=2, artifact_bytes=200)
    copies = await store.read(lambda tx: tx.get_artifacts(TENANT, REF.uid, ids))
    originals = await store.read(lambda tx: tx.get_artifacts(TENANT, SESSION.uid, ids))
    assert copies == {id_: replace(a, session_uid=REF.uid) for id_, a in originals.items()}
    blobs = ["blob-1", "blob-2", "blob-3"]

    async def unreferenced() -> set[str]:
        uses = await store.read(lambda tx: tx.scan_blobs(("", ""), 10))
        assert [use.name for use in uses] == [(TENANT, key) for key in blobs]
        return {use.name[1] for use in uses if not use.referenced}

    for id_ in (*ids, "art_3"):
        await store.write(lambda tx, id_=id_: tx.delete_artifact(TENANT, SESSION.uid, id_))  # type: ignore[misc]
    assert await unreferenced() == {"blob-3"}
    totals = await store.read(lambda tx: tx.total_artifacts(TENANT, REF.uid))
    assert (totals.files, totals.size_bytes) == (2, 200)
    other = replace(REF, uid="other")
    await begin(store, None, other.uid)
    with pytest.raises(SourceChanged):
        await store.write(lambda tx: tx.copy_fork_artifacts(other, ["art_1"]))
    await store.write(lambda tx: tx.delete_session(TENANT, REF.uid, 5_000))
    await purge(store)
    assert await unreferenced() == set(blobs)


async def test_bytes_of_a_fork_in_the_making_are_referred_to(store: Store) -> None:
    await with_source(store)
    await with_artifacts(store, [artifact(1)])
    await begin(store)
    await store.write(lambda tx: tx.copy_fork_artifacts(REF, ["art_1"]))
    await store.write(lambda tx: tx.delete_artifact(TENANT, SESSION.uid, "art_1"))
    (use,) = await store.read(lambda tx: tx.scan_blobs(("", ""), 10))
    assert use.referenced


def test_every_column_of_a_copy_was_thought_of() -> None:
    """A new column is copied as it is, unless `sql/forks.py` says otherwise: decide, and add it."""
    of_events = "tenant session_uid sequence id type turn_id created_at hide_reason deleted_at "
    of_events += "tool_call_id size_bytes payload alteration"
    of_turns = "tenant session_uid id number status input_event_id input_type input first_sequence "
    of_turns += "last_sequence pending_calls attempt error input_tokens output_tokens "
    of_turns += "reasoning_tokens open_calls lease_owner lease_until taken_sequence "
    of_turns += "steered_sequence fence created_at started_at ended_at lease_address "
    of_turns += "pending_until"
    of_artifacts = (
        "tenant session_uid id filename mime_type size_bytes sha256 description metadata "
    )
    of_artifacts += "ttl_days source blob_key created_at updated_at expire_at"
    assert set(tables.events.c.keys()) == set(of_events.split())
    assert set(tables.turns.c.keys()) == set(of_turns.split())
    assert set(tables.artifacts.c.keys()) == set(of_artifacts.split())
