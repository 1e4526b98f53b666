"""The oracle: what must hold of every record whatever happened, checked by SQL.

G2 order, G3 atomic batches (by their claims), G4 exactly once, G5 every call has its output, G7
artifacts are whole. Copies of a fork that is not whole belong to no session.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, select

from hansard.v1 import event_pb2
from hansard_server.domain.records import (
    ArtifactSource,
    EventType,
    PendingState,
    SessionStatus,
    TurnStatus,
)
from hansard_server.repository.sql import tables
from hansard_server.repository.sql.rows import decode_pending_calls

Key = tuple[str, str]
ARTIFACTS = "artifacts"
"""The folder in a data folder where the bytes of artifacts are."""


def check_invariants(connection: Connection, artifacts: Path | None = None) -> None:
    """Raise AssertionError, naming the session, when the record is not whole.

    `artifacts` is the folder of the artifacts' bytes; without it these are not looked at.
    """
    heads = {_key(row): row for row in _rows(connection, tables.session_heads)}
    events: dict[Key, list[Any]] = defaultdict(list)
    for row in _rows(connection, tables.events):
        events[_key(row)].append(row)
    turns: dict[Key, list[Any]] = defaultdict(list)
    for row in _rows(connection, tables.turns):
        turns[_key(row)].append(row)
    sessions = {(row.tenant, row.uid): row for row in _rows(connection, tables.sessions)}
    in_making = {_key(row) for row in _rows(connection, tables.forks)}
    assert not in_making & (heads.keys() | sessions.keys()), "a fork is there before it is whole"
    assert (events.keys() | turns.keys()) <= (heads.keys() | in_making), "rows without a session"
    for key, head in heads.items():
        if head.deleted:
            continue
        rows = sorted(events[key], key=lambda row: row.sequence)
        _check_order(key, head, rows)
        forked = key in sessions and sessions[key].forked_from is not None
        _check_turns(key, head, turns[key], rows, forked=forked)
        _check_calls(key, turns[key], rows)
    _check_claims(connection, events, turns)
    _check_artifacts(connection, heads, events, artifacts)


def check_store(url: str, data_dir: Path | None = None) -> None:
    """Raise AssertionError when a record of the database is not whole.

    Nobody may write to a SQLite database meanwhile. With the server's `data_dir` the bytes of its
    artifacts are read too.
    """
    artifacts = None if data_dir is None else data_dir / ARTIFACTS
    engine = create_engine(url)
    if engine.dialect.name == "postgresql":
        # All of one moment, so that another replica may go on writing.
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    try:
        with engine.connect() as connection:
            check_invariants(connection, artifacts)
    finally:
        engine.dispose()


def _rows(connection: Connection, table: Any) -> Any:
    return connection.execute(select(table))


def _key(row: Any) -> Key:
    return (row.tenant, row.session_uid)


def _check_order(key: Key, head: Any, rows: list[Any]) -> None:
    sequences = [row.sequence for row in rows]
    assert sequences == list(range(1, len(rows) + 1)), f"{key}: holes or repeats: {sequences}"
    assert head.last_sequence == len(rows), f"{key}: the head says {head.last_sequence}"
    times = [row.created_at for row in rows]
    assert times == sorted(times), f"{key}: times decrease"


def _check_turns(key: Key, head: Any, turns: list[Any], rows: list[Any], *, forked: bool) -> None:
    unfinished = [
        turn.id for turn in turns if turn.status in {TurnStatus.RUNNING, TurnStatus.REQUIRES_ACTION}
    ]
    assert len(unfinished) <= 1, f"{key}: several turns are unfinished: {unfinished}"
    assert head.unfinished_turn_id == (unfinished[0] if unfinished else None), key
    assert (head.status == SessionStatus.IDLE) == (not unfinished), key
    waits = any(turn.status == TurnStatus.REQUIRES_ACTION for turn in turns)
    assert (head.status == SessionStatus.REQUIRES_ACTION) == waits, key
    waiting = sum(turn.status == TurnStatus.QUEUED for turn in turns)
    assert head.queued_turns == waiting, f"{key}: {waiting} turns wait, the head says otherwise"
    numbers = sorted(turn.number for turn in turns)
    assert numbers == list(range(1, len(turns) + 1)), f"{key}: turn numbers {numbers}"
    by_turn: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        if row.turn_id is not None:
            by_turn[row.turn_id].append(row)
    for turn in turns:
        own = by_turn[turn.id]
        inputs = [row for row in own if row.id == turn.input_event_id]
        if turn.status == TurnStatus.QUEUED:
            assert not own, f"{key}: {turn.id} waits and has events"
            continue
        if not own and turn.status == TurnStatus.INTERRUPTED:
            continue
        if turn.input_type == EventType.COMPACTION:
            # It writes its event when it has the summary; one that fails has none.
            first, last = (own[0].sequence, own[-1].sequence) if own else (0, 0)
            assert (turn.first_sequence, turn.last_sequence) == (first, last), turn.id
            assert len(inputs) == sum(row.type == EventType.COMPACTION for row in own), turn.id
            continue
        # A hidden or deleted input is not copied, neither as an event nor with its turn.
        if not (forked and not inputs and turn.input == b""):
            assert len(inputs) == 1, f"{key}: {turn.id} has {len(inputs)} input events"
            assert own[0] == inputs[0], turn.id
        assert turn.first_sequence == own[0].sequence, turn.id
        assert turn.last_sequence == own[-1].sequence, turn.id


def _check_calls(key: Key, turns: list[Any], rows: list[Any]) -> None:
    inputs = Counter(row.tool_call_id for row in rows if row.type == EventType.TOOL_INPUT)
    outputs = Counter(row.tool_call_id for row in rows if row.type == EventType.TOOL_OUTPUT)
    assert all(count == 1 for count in (inputs | outputs).values()), f"{key}: a call twice"
    assert not outputs.keys() - inputs.keys(), f"{key}: an output without its input"
    ended = {turn.id for turn in turns if turn.status >= TurnStatus.COMPLETED}
    for row in rows:
        if row.type == EventType.TOOL_INPUT and row.turn_id in ended:
            assert outputs[row.tool_call_id] == 1, f"{key}: {row.tool_call_id} has no output"
    for turn in turns:
        own = {row.tool_call_id for row in rows if row.turn_id == turn.id and row.tool_call_id}
        open_calls = {call for call in own if not outputs[call]}
        assert open_calls == {call[0] for call in json.loads(turn.open_calls)}, turn.id
        _check_pending(turn, open_calls)


def _check_pending(turn: Any, open_calls: set[str]) -> None:
    pending = decode_pending_calls(turn.pending_calls)
    awaited = [call for call in pending if call.state is PendingState.AWAITED]
    assert {call.tool_call_id for call in pending} <= open_calls, turn.id
    waits = turn.status == TurnStatus.REQUIRES_ACTION
    assert waits == bool(awaited), f"{turn.id}: waits for {awaited}"
    assert not (waits and turn.lease_owner), f"{turn.id}: waits, and has an owner"
    assert turn.pending_until == min((c.expire_at_us for c in awaited), default=None), turn.id


def _check_claims(
    connection: Connection, events: dict[Key, list[Any]], turns: dict[Key, list[Any]]
) -> None:
    for row in _rows(connection, tables.claims):
        if row.turn_id is not None:
            assert any(turn.id == row.turn_id for turn in turns[_key(row)]), row
        if row.events is not None:
            stored = {event.id: event.sequence for event in events[_key(row)]}
            # An approval has written nothing; its place is where what comes of it begins.
            made = [(id_, sequence) for id_, sequence in json.loads(row.events) if id_]
            assert all(stored.get(id_) == sequence for id_, sequence in made), row


def _check_artifacts(
    connection: Connection, heads: dict[Key, Any], events: dict[Key, list[Any]], folder: Path | None
) -> None:
    rows: dict[Key, dict[str, Any]] = defaultdict(dict)
    for row in _rows(connection, tables.artifacts):
        rows[_key(row)][row.id] = row
        if folder is not None:
            _check_bytes(folder / row.tenant / row.blob_key, row)
    sources = {_key(row): row for row in _sessions(connection)}
    for key, head in heads.items():
        if head.deleted:
            continue
        own = rows[key]
        size_bytes = sum(row.size_bytes for row in own.values())
        found = (head.artifact_files, head.artifact_bytes)
        assert found == (len(own), size_bytes), f"{key}: the head says {found} of {list(own)}"
        # Without the folder the payloads may be a test's own, and no messages.
        if folder is not None:
            uploads = [row for row in events[key] if row.type == EventType.ARTIFACT_UPLOAD]
            _check_uploads(key, own, uploads, forked=sources[key].forked_from is not None)


def _sessions(connection: Connection) -> Any:
    sessions = tables.sessions.c
    return connection.execute(
        select(sessions.tenant, sessions.uid.label("session_uid"), sessions.forked_from)
    )


def _check_bytes(path: Path, row: Any) -> None:
    assert path.is_file(), f"{_key(row)}: the bytes of {row.id} are lost"
    assert path.stat().st_size == row.size_bytes, f"{_key(row)}: the size of {row.id}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    assert digest == row.sha256, f"{_key(row)}: the bytes of {row.id} are others"


def _check_uploads(key: Key, own: dict[str, Any], uploads: list[Any], *, forked: bool) -> None:
    """Check that events and artifacts name each other, as far as neither was deleted since."""
    named: set[str] = set()
    for event in uploads:
        message = event_pb2.Event.FromString(event.payload)
        for reference in message.artifact_upload.artifacts:
            named.add(reference.artifact_id)
            row = own.get(reference.artifact_id)
            if row is not None:
                said = (reference.filename, reference.mime_type, reference.size_bytes)
                is_so = (row.filename, row.mime_type, row.size_bytes)
                assert said == is_so, f"{key}: {row.id} is not what {event.id} says"
    if forked or any(event.deleted_at is not None for event in uploads):
        return
    uploaded = {row.id for row in own.values() if row.source == ArtifactSource.UPLOAD}
    assert uploaded <= named, f"{key}: no event names {uploaded - named}"
