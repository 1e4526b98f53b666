"""Records of the store as messages of the contract."""

from __future__ import annotations

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1 import access_pb2, agent_pb2, session_pb2, turn_pb2
from hansard_server.domain.access import ApiKeyRecord
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import (
    AgentRecord,
    PendingCall,
    SessionHead,
    SessionView,
    TurnRecord,
    TurnStatus,
    Usage,
)

_MICROSECONDS = 1_000_000


def to_agent(record: AgentRecord) -> agent_pb2.Agent:
    """Return the agent as callers see it."""
    # Model, first step and tools are stored as an Agent that holds nothing else.
    agent = agent_pb2.Agent.FromString(record.configuration)
    agent.key = record.key
    agent.uid = record.uid
    agent.name = record.name
    agent.description = record.description
    agent.metadata.MergeFromString(record.metadata)
    agent.enabled = record.enabled
    agent.etag = record.etag
    agent.created_at.CopyFrom(to_timestamp(record.created_at_us))
    agent.updated_at.CopyFrom(to_timestamp(record.updated_at_us))
    return agent


def to_session(view: SessionView, limits: Limits) -> session_pb2.Session:
    """Return the session as callers see it, with what it may hold."""
    record, head = view.record, view.head
    origin = session_pb2.ForkOrigin.FromString(record.forked_from or b"")
    return session_pb2.Session(
        agent_key=record.agent_key,
        key=record.key,
        uid=record.uid,
        name=record.name,
        description=record.description,
        metadata=Struct.FromString(record.metadata),
        enabled=record.enabled,
        tti_minutes=record.tti_minutes,
        status=session_pb2.SessionStatus.ValueType(head.status),
        last_sequence=head.last_sequence,
        usage=to_usage(head.usage),
        forked_from=origin if record.forked_from else None,
        parent=session_pb2.SessionParent.FromString(record.parent) if record.parent else None,
        etag=record.etag,
        created_at=to_timestamp(record.created_at_us),
        updated_at=to_timestamp(record.updated_at_us),
        expire_at=None if head.expire_at_us is None else to_timestamp(head.expire_at_us),
        quotas=_quotas(head, limits),
        last_event_at=to_timestamp(head.last_event_at_us)
        if head.last_sequence > origin.last_sequence
        else None,
    )


def _quotas(head: SessionHead, limits: Limits) -> session_pb2.SessionQuotas:
    return session_pb2.SessionQuotas(
        events=session_pb2.Quota(used=head.last_sequence, limit=limits.session_max_events or None),
        artifact_files=session_pb2.Quota(
            used=head.artifact_files, limit=limits.session_artifacts_max_files
        ),
        artifact_bytes=session_pb2.Quota(
            used=head.artifact_bytes, limit=limits.session_artifacts_max_bytes
        ),
        queued_inputs=session_pb2.Quota(used=head.queued_turns, limit=limits.queue_max_inputs),
    )


def to_turn(record: TurnRecord, agent_key: str, session_key: str) -> turn_pb2.Turn:
    """Return the turn as callers see it."""
    turn = turn_pb2.Turn(
        agent_key=agent_key,
        session_key=session_key,
        id=record.id,
        status=turn_pb2.TurnStatus.ValueType(record.status),
        input=turn_pb2.TurnInput.FromString(record.input),
        first_sequence=record.first_sequence,
        last_sequence=record.last_sequence,
        attempt=record.attempt,
        usage=to_usage(record.usage),
        created_at=to_timestamp(record.created_at_us),
    )
    if record.status is TurnStatus.REQUIRES_ACTION:
        turn.pending_calls.extend(map(_pending_call, record.awaited_calls))
    if record.error:
        turn.error.MergeFromString(record.error)
    if record.started_at_us is not None:
        turn.started_at.CopyFrom(to_timestamp(record.started_at_us))
    if record.ended_at_us is not None:
        turn.ended_at.CopyFrom(to_timestamp(record.ended_at_us))
    return turn


def _pending_call(call: PendingCall) -> turn_pb2.PendingCall:
    return turn_pb2.PendingCall(
        tool_call_id=call.tool_call_id,
        kind=turn_pb2.PendingCallKind.ValueType(call.kind),
        expire_at=to_timestamp(call.expire_at_us),
        argument_override_json=call.override_json,
    )


def to_api_key(record: ApiKeyRecord, secret: str = "") -> access_pb2.ApiKey:
    """Return the key as callers see it."""
    key = access_pb2.ApiKey(
        id=record.id,
        name=record.name,
        roles=[
            access_pb2.RoleGrant(
                role=access_pb2.Role.ValueType(grant.role), agent_key=grant.agent_key
            )
            for grant in record.grants
        ],
        secret=secret,
        created_at=to_timestamp(record.created_at_us),
    )
    for field, time_us in (
        (key.expires_at, record.expires_at_us),
        (key.last_used_at, record.last_used_at_us),
        (key.revoked_at, record.revoked_at_us),
    ):
        if time_us is not None:
            field.CopyFrom(to_timestamp(time_us))
    return key


def to_usage(usage: Usage) -> turn_pb2.Usage:
    """Return the usage as callers see it."""
    return turn_pb2.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def to_timestamp(time_us: int) -> Timestamp:
    """Return a time in microseconds as a Timestamp."""
    seconds, rest = divmod(time_us, _MICROSECONDS)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)
