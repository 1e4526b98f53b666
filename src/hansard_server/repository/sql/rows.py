"""Rows of the tables as records, and back: the only place that knows how either looks."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any, TypeVar

from sqlalchemy import Row

from hansard_server.domain.records import (
    AgentRecord,
    ArtifactRecord,
    ArtifactSource,
    Claim,
    EventRecord,
    EventType,
    HideReason,
    OpenCall,
    PendingCall,
    PendingKind,
    PendingState,
    SessionHead,
    SessionRecord,
    SessionStatus,
    TurnRecord,
    TurnStatus,
    Usage,
)

AnyRow = Row[Any]
RecordT = TypeVar("RecordT", AgentRecord, SessionRecord)


def agent_record(row: AnyRow) -> AgentRecord:
    """Return the agent of a row that holds all columns of `agents`."""
    return AgentRecord(
        tenant=row.tenant,
        uid=row.uid,
        key=row.key,
        name=row.name,
        description=row.description,
        configuration=row.configuration,
        metadata=row.metadata,
        enabled=row.enabled,
        etag=row.etag,
        created_at_us=row.created_at,
        updated_at_us=row.updated_at,
    )


def agent_values(agent: AgentRecord) -> dict[str, Any]:
    """Return the agent as columns of `agents`; claim and deletion are not part of it."""
    return {
        "tenant": agent.tenant,
        "uid": agent.uid,
        "key": agent.key,
        "name": agent.name,
        "description": agent.description,
        "configuration": agent.configuration,
        "metadata": agent.metadata,
        "enabled": agent.enabled,
        "etag": agent.etag,
        "created_at": agent.created_at_us,
        "updated_at": agent.updated_at_us,
    }


def claim_values(claim: Claim | None) -> dict[str, Any]:
    """Return the claim as columns of the row that it made; none for no claim."""
    if claim is None:
        return {}
    return {"request_id": claim.request_id, "fingerprint": claim.fingerprint}


def session_record(row: AnyRow) -> SessionRecord:
    """Return the session of a row: all columns of `sessions`, and `agent_key`."""
    return SessionRecord(
        tenant=row.tenant,
        uid=row.uid,
        agent_uid=row.agent_uid,
        agent_key=row.agent_key,
        key=row.key,
        name=row.name,
        description=row.description,
        metadata=row.metadata,
        enabled=row.enabled,
        tti_minutes=row.tti_minutes,
        forked_from=row.forked_from,
        parent=row.parent,
        etag=row.etag,
        created_at_us=row.created_at,
        updated_at_us=row.updated_at,
    )


def session_values(session: SessionRecord) -> dict[str, Any]:
    """Return the session as columns of `sessions`; claim and deletion are not part of it."""
    return {
        "tenant": session.tenant,
        "uid": session.uid,
        "agent_uid": session.agent_uid,
        "key": session.key,
        "name": session.name,
        "description": session.description,
        "metadata": session.metadata,
        "enabled": session.enabled,
        "tti_minutes": session.tti_minutes,
        "forked_from": session.forked_from,
        "parent": session.parent,
        "etag": session.etag,
        "created_at": session.created_at_us,
        "updated_at": session.updated_at_us,
    }


def session_head(row: AnyRow) -> SessionHead:
    """Return the head of a row that holds the columns of `session_heads`."""
    return SessionHead(
        last_sequence=row.last_sequence,
        status=SessionStatus(row.status),
        unfinished_turn_id=row.unfinished_turn_id,
        queued_turns=row.queued_turns,
        usage=_usage(row),
        artifact_files=row.artifact_files,
        artifact_bytes=row.artifact_bytes,
        expire_at_us=row.expire_at,
        # Before the first event the column holds the time that its own must not be before.
        last_event_at_us=row.last_event_at if row.last_sequence else 0,
    )


def event_record(row: AnyRow) -> EventRecord:
    """Return the event of a row that holds the columns of `events`."""
    return EventRecord(
        id=row.id,
        sequence=row.sequence,
        type=EventType(row.type),
        turn_id=row.turn_id,
        created_at_us=row.created_at,
        payload=row.payload,
        tool_call_id=row.tool_call_id,
        hide_reason=HideReason(row.hide_reason),
        deleted_at_us=row.deleted_at,
    )


def event_values(tenant: str, session_uid: str, event: EventRecord) -> dict[str, Any]:
    """Return the event as columns of `events`."""
    return {
        "tenant": tenant,
        "session_uid": session_uid,
        "sequence": event.sequence,
        "id": event.id,
        "type": int(event.type),
        "turn_id": event.turn_id,
        "created_at": event.created_at_us,
        "hide_reason": int(event.hide_reason),
        "deleted_at": event.deleted_at_us,
        "tool_call_id": event.tool_call_id,
        "size_bytes": len(event.payload),
        "payload": event.payload,
    }


def turn_record(row: AnyRow) -> TurnRecord:
    """Return the turn of a row that holds the columns of `turns`."""
    return TurnRecord(
        tenant=row.tenant,
        session_uid=row.session_uid,
        id=row.id,
        number=row.number,
        status=TurnStatus(row.status),
        input_event_id=row.input_event_id,
        input_type=EventType(row.input_type),
        input=row.input,
        first_sequence=row.first_sequence,
        last_sequence=row.last_sequence,
        pending_calls=decode_pending_calls(row.pending_calls),
        attempt=row.attempt,
        error=row.error,
        usage=_usage(row),
        open_calls=decode_open_calls(row.open_calls),
        taken_sequence=row.taken_sequence,
        steered_sequence=row.steered_sequence,
        fence=row.fence,
        created_at_us=row.created_at,
        started_at_us=row.started_at,
        ended_at_us=row.ended_at,
    )


def turn_values(turn: TurnRecord) -> dict[str, Any]:
    """Return the turn as columns of `turns`; its lease is not part of it."""
    return {
        "tenant": turn.tenant,
        "session_uid": turn.session_uid,
        "id": turn.id,
        "number": turn.number,
        "status": int(turn.status),
        "input_event_id": turn.input_event_id,
        "input_type": int(turn.input_type),
        "input": turn.input,
        "first_sequence": turn.first_sequence,
        "last_sequence": turn.last_sequence,
        "pending_calls": encode_pending_calls(turn.pending_calls),
        "pending_until": _pending_until(turn),
        "attempt": turn.attempt,
        "error": turn.error,
        "input_tokens": turn.usage.input_tokens,
        "output_tokens": turn.usage.output_tokens,
        "reasoning_tokens": turn.usage.reasoning_tokens,
        "open_calls": encode_open_calls(turn.open_calls),
        "taken_sequence": turn.taken_sequence,
        "steered_sequence": turn.steered_sequence,
        "fence": turn.fence,
        "created_at": turn.created_at_us,
        "started_at": turn.started_at_us,
        "ended_at": turn.ended_at_us,
    }


def encode_open_calls(calls: tuple[OpenCall, ...]) -> str:
    """Return the calls as the JSON of `turns.open_calls`."""
    return json.dumps(
        [[c.tool_call_id, c.tool_configuration_name, c.tool_name] for c in calls],
        separators=(",", ":"),
    )


def decode_open_calls(text: str) -> tuple[OpenCall, ...]:
    """Return the calls that encode_open_calls wrote."""
    # Nearly every turn has none.
    if text == "[]":
        return ()
    return tuple(OpenCall(*call) for call in json.loads(text))


def encode_pending_calls(calls: tuple[PendingCall, ...]) -> bytes:
    """Return the calls as the JSON of `turns.pending_calls`; nothing for none."""
    if not calls:
        return b""
    rows = [[c.tool_call_id, c.kind, c.expire_at_us, c.override_json, c.state] for c in calls]
    return json.dumps(rows, separators=(",", ":")).encode()


def decode_pending_calls(data: bytes) -> tuple[PendingCall, ...]:
    """Return the calls that encode_pending_calls wrote."""
    # Nearly every turn has none.
    if not data:
        return ()
    return tuple(
        PendingCall(
            tool_call_id=id_,
            kind=PendingKind(kind),
            expire_at_us=expire_at_us,
            override_json=override_json,
            state=PendingState(state),
        )
        for id_, kind, expire_at_us, override_json, state in json.loads(data)
    )


def _pending_until(turn: TurnRecord) -> int | None:
    """Return when the first of the calls that a turn waits for runs out of time."""
    if turn.status is not TurnStatus.REQUIRES_ACTION:
        return None
    return min((call.expire_at_us for call in turn.awaited_calls), default=None)


def artifact_record(row: AnyRow) -> ArtifactRecord:
    """Return the artifact of a row that holds all columns of `artifacts`."""
    return ArtifactRecord(
        tenant=row.tenant,
        session_uid=row.session_uid,
        id=row.id,
        filename=row.filename,
        mime_type=row.mime_type,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        description=row.description,
        metadata=row.metadata,
        ttl_days=row.ttl_days,
        source=ArtifactSource(row.source),
        blob_key=row.blob_key,
        created_at_us=row.created_at,
        updated_at_us=row.updated_at,
        expire_at_us=row.expire_at,
    )


def artifact_values(artifact: ArtifactRecord) -> dict[str, Any]:
    """Return the artifact as columns of `artifacts`."""
    return {
        "tenant": artifact.tenant,
        "session_uid": artifact.session_uid,
        "id": artifact.id,
        "filename": artifact.filename,
        "mime_type": artifact.mime_type,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "description": artifact.description,
        "metadata": artifact.metadata,
        "ttl_days": artifact.ttl_days,
        "source": int(artifact.source),
        "blob_key": artifact.blob_key,
        "created_at": artifact.created_at_us,
        "updated_at": artifact.updated_at_us,
        "expire_at": artifact.expire_at_us,
    }


def encode_first_answer(record: AgentRecord | SessionRecord) -> bytes:
    """Return the record as the JSON of a `first_answer` column."""
    fields = {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in dataclasses.asdict(record).items()
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_first_answer(kind: type[RecordT], data: bytes) -> RecordT:
    """Return the record that encode_first_answer wrote."""
    fields: dict[str, Any] = {
        name: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
        for name, value in json.loads(data).items()
    }
    # A field that came later has its default; one that went is left behind.
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in fields.items() if name in known})


def _usage(row: AnyRow) -> Usage:
    return Usage(row.input_tokens, row.output_tokens, row.reasoning_tokens)
