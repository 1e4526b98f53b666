"""Records for tests, with what a test does not care about filled in, and their way into a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from sqlalchemy import Table, insert, select, update

from hansard_server.domain.records import (
    AgentRecord,
    ArtifactRecord,
    ArtifactSource,
    Claim,
    EventRecord,
    EventType,
    SessionRecord,
    TurnRecord,
    TurnStatus,
)
from hansard_server.repository.api import Store, WriteTx
from hansard_server.repository.sql.blobs import share_blobs
from hansard_server.repository.sql.rows import artifact_values, event_values, turn_values
from hansard_server.repository.sql.tables import (
    artifacts,
    events,
    session_heads,
    turns,
)
from hansard_server.repository.sql.writes import SqlWriteTx

TENANT = "tenant-1"
AGENT = AgentRecord(
    tenant=TENANT,
    uid="agent-uid",
    key="support",
    name="Support",
    description="",
    configuration=b"\x01configuration",
    metadata=b"",
    enabled=True,
    etag="etag-1",
    created_at_us=1_000,
    updated_at_us=1_000,
)
SESSION = SessionRecord(
    tenant=TENANT,
    uid="session-uid",
    agent_uid=AGENT.uid,
    agent_key=AGENT.key,
    key="order",
    name="Order",
    description="",
    metadata=b"\x00\xff",
    enabled=True,
    tti_minutes=0,
    etag="etag-1",
    created_at_us=2_000,
    updated_at_us=2_000,
)
CLAIM = Claim("request-1", b"\x07" * 32)


def session(number: int, **changes: Any) -> SessionRecord:
    """Return a session of AGENT with uid and key of its own, made at 2,000 + number."""
    made = replace(
        SESSION, uid=f"session-{number:03}", key=f"key-{number}", created_at_us=2_000 + number
    )
    return replace(made, **changes)


def event(sequence: int, **changes: Any) -> EventRecord:
    """Return an agent_output, made at 10 times its sequence."""
    made = EventRecord(
        id=f"aev_{sequence}",
        sequence=sequence,
        type=EventType.AGENT_OUTPUT,
        turn_id=None,
        created_at_us=sequence * 10,
        payload=b"payload %d" % sequence,
    )
    return replace(made, **changes)


def turn(number: int, status: TurnStatus, **changes: Any) -> TurnRecord:
    """Return a turn of SESSION."""
    made = TurnRecord(
        tenant=TENANT,
        session_uid=SESSION.uid,
        id=f"trn_{number}",
        number=number,
        status=status,
        input_event_id=f"aev_input_{number}",
        input_type=EventType.INPUT_MESSAGE,
        input=b"input",
        created_at_us=3_000,
    )
    return replace(made, **changes)


def artifact(number: int, **changes: Any) -> ArtifactRecord:
    """Return an artifact of SESSION of 100 bytes, made at 4,000 + number."""
    made = ArtifactRecord(
        tenant=TENANT,
        session_uid=SESSION.uid,
        id=f"art_{number}",
        filename=f"{number}.txt",
        mime_type="text/plain",
        size_bytes=100,
        sha256=number.to_bytes(32),
        description="",
        metadata=b"",
        ttl_days=None,
        source=ArtifactSource.UPLOAD,
        blob_key=f"blob-{number}",
        created_at_us=4_000 + number,
        updated_at_us=4_000 + number,
    )
    return replace(made, **changes)


async def with_session(store: Store, record: SessionRecord = SESSION) -> None:
    """Write AGENT and a session of it."""

    def decide(tx: WriteTx) -> None:
        tx.insert_agent(AGENT, None)
        tx.insert_session(record, None)

    await store.write(decide)


async def with_events(
    store: Store, records: Sequence[EventRecord], session_uid: str = SESSION.uid
) -> None:
    """Write events as they are, and the head's last sequence."""

    def decide(tx: WriteTx) -> None:
        rows = [event_values(TENANT, session_uid, record) for record in records]
        _connection(tx).execute(insert(events), rows)
        set_head(tx, session_uid, last_sequence=max(record.sequence for record in records))

    await store.write(decide)


async def with_turns(
    store: Store, records: Sequence[TurnRecord], *, owner: str | None = None, lease_until: int = 0
) -> None:
    """Write turns as they are, with a lease where they run, and what the head says of them."""

    def decide(tx: WriteTx) -> None:
        for record in records:
            lease = (owner, lease_until) if record.status == TurnStatus.RUNNING else (None, None)
            values = turn_values(record) | {"lease_owner": lease[0], "lease_until": lease[1]}
            _connection(tx).execute(insert(turns), values)
            if record.status in {TurnStatus.RUNNING, TurnStatus.REQUIRES_ACTION}:
                set_head(tx, record.session_uid, unfinished_turn_id=record.id)
        waiting = sum(record.status == TurnStatus.QUEUED for record in records)
        set_head(tx, records[0].session_uid, queued_turns=waiting)

    await store.write(decide)


async def with_artifacts(store: Store, records: Sequence[ArtifactRecord]) -> None:
    """Write artifacts as they are, and the head's totals."""

    def decide(tx: WriteTx) -> None:
        stored = share_blobs(_connection(tx), records)
        _connection(tx).execute(insert(artifacts), [artifact_values(a) for a in stored])
        total = sum(record.size_bytes for record in records)
        set_head(tx, SESSION.uid, artifact_files=len(records), artifact_bytes=total)

    await store.write(decide)


def set_head(tx: WriteTx, session_uid: str, **values: Any) -> None:
    """Change the head of a session."""
    of_session = session_heads.c.session_uid == session_uid
    _connection(tx).execute(update(session_heads).where(of_session).values(**values))


async def rows_of(store: Store, table: Table) -> list[dict[str, Any]]:
    """Return all rows of a table."""

    def read(tx: WriteTx) -> list[dict[str, Any]]:
        return [dict(row._mapping) for row in _connection(tx).execute(select(table))]

    return await store.write(read)


def _connection(tx: WriteTx) -> Any:
    return cast("SqlWriteTx", tx).connection
