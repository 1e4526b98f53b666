"""Databases filled in bulk: rows as the server writes them, without its help."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from google.protobuf.struct_pb2 import Struct
from sqlalchemy import Connection, Table, insert, text

from hansard.v1 import agent_pb2, event_pb2
from hansard_server.domain.access import DEFAULT_TENANT
from hansard_server.domain.keys import make_uid
from hansard_server.domain.records import (
    AgentRecord,
    EventRecord,
    EventType,
    SessionRecord,
    SessionStatus,
)
from hansard_server.repository.sql.engine import EngineOptions, make_engine
from hansard_server.repository.sql.rows import agent_values, event_values, session_values
from hansard_server.repository.sql.tables import agents, events, session_heads, sessions
from tests.benchmarks.messages import AGENT_KEY
from tests.support.talk import TWENTY_DELTAS, model

START_US = 1_700_000_000_000_000
STEP_US = 1_000_000
"""Sessions, and events, are made a second apart."""

SCRIPTED = model(TWENTY_DELTAS)
"""What answers unless told otherwise: 20 deltas, and two events."""
_ROWS_AT_ONCE = 5_000
_SENTENCE = "The parcel left the warehouse on Tuesday and waits at customs, says the carrier. "


class Filler:
    """Writes agents, sessions and events into a migrated database."""

    def __init__(self, url: str) -> None:
        """Write to the database of `url`, which nobody else uses yet."""
        self._engine = make_engine(url, EngineOptions(statement_timeout_s=300))
        self._agents: dict[str, AgentRecord] = {}
        self.add_agent(AGENT_KEY, SCRIPTED)

    def add_agent(self, key: str, model: agent_pb2.Model) -> None:
        """Add an agent with this model."""
        self._agents[key] = _agent(key, model)
        with self._engine.begin() as connection:
            connection.execute(insert(agents), agent_values(self._agents[key]))

    def add_sessions(
        self, keys: Iterable[str], *, events_each: int = 0, agent_key: str = AGENT_KEY
    ) -> None:
        """Add sessions of an agent, one second apart, each with so many events."""
        agent = self._agents[agent_key]
        records = [_session(agent, number, key) for number, key in enumerate(keys)]
        with self._engine.begin() as connection:
            _insert(connection, sessions, map(session_values, records))
            _insert(connection, session_heads, (_head(record, events_each) for record in records))
            for record in records:
                rows = (
                    event_values(DEFAULT_TENANT, record.uid, event(sequence))
                    for sequence in range(1, events_each + 1)
                )
                _insert(connection, events, rows)

    def session(self, key: str) -> SessionRecord:
        """Return a session as `add_sessions` makes it, which is not added."""
        return _session(self._agents[AGENT_KEY], 0, key)

    def close(self) -> None:
        """Leave the database as one that has been in use for a while."""
        if self._engine.dialect.name == "postgresql":
            # As its autovacuum would have done by then.
            with self._engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.execute(text("VACUUM ANALYZE"))
                connection.execute(text("CHECKPOINT"))
        self._engine.dispose()


def event(sequence: int) -> EventRecord:
    """Return an agent_output of about 500 bytes."""
    payload = event_pb2.Event(agent_output=event_pb2.AgentOutput(content=_SENTENCE * 6))
    return EventRecord(
        id=event_id(sequence),
        sequence=sequence,
        type=EventType.AGENT_OUTPUT,
        turn_id=None,
        created_at_us=START_US + sequence * STEP_US,
        payload=payload.SerializeToString(),
    )


def event_id(sequence: int) -> str:
    """Return the id of the event: as random to an index as the server's."""
    return f"aev_{sequence * 2_654_435_761 % 2**32:08x}{sequence:012}"


def _agent(key: str, model: agent_pb2.Model) -> AgentRecord:
    return AgentRecord(
        tenant=DEFAULT_TENANT,
        uid=make_uid(),
        key=key,
        name="Support",
        description="",
        configuration=agent_pb2.Agent(model=model).SerializeToString(),
        metadata=b"",
        enabled=True,
        etag="etag",
        created_at_us=START_US,
        updated_at_us=START_US,
    )


def _session(agent: AgentRecord, number: int, key: str) -> SessionRecord:
    created_at_us = START_US + number * STEP_US
    return SessionRecord(
        tenant=DEFAULT_TENANT,
        uid=make_uid(),
        agent_uid=agent.uid,
        agent_key=agent.key,
        key=key,
        name=f"Order {number}",
        description=_SENTENCE,
        metadata=_metadata(number),
        enabled=True,
        tti_minutes=0,
        etag="etag",
        created_at_us=created_at_us,
        updated_at_us=created_at_us,
    )


def _metadata(number: int) -> bytes:
    struct = Struct()
    struct.update({"customer": f"c-{number % 1_000}", "channel": "web", "vip": number % 10 == 0})
    return struct.SerializeToString(deterministic=True)


def _head(session: SessionRecord, last_sequence: int) -> dict[str, Any]:
    last_at_us = START_US + last_sequence * STEP_US if last_sequence else 0
    return {
        "tenant": session.tenant,
        "session_uid": session.uid,
        "last_sequence": last_sequence,
        "last_event_at": last_at_us,
        "last_active_at": last_at_us or session.created_at_us,
        "status": int(SessionStatus.IDLE),
        "unfinished_turn_id": None,
        "queued_turns": 0,
        "turn_count": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "reasoning_tokens": 0,
        "artifact_files": 0,
        "artifact_bytes": 0,
        "tti_minutes": session.tti_minutes,
        "expire_at": None,
        "deleted": False,
    }


def _insert(connection: Connection, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    for batch in _batches(rows):
        connection.execute(insert(table), batch)


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    source = iter(rows)
    while batch := list(islice(source, _ROWS_AT_ONCE)):
        yield batch
