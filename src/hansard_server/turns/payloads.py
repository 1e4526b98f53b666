"""Payloads: the generated messages as the bytes that the store keeps, and back."""

from __future__ import annotations

from hansard.v1 import event_pb2
from hansard_server.agents.api import TextKind
from hansard_server.domain.clock import MICROSECONDS_PER_SECOND
from hansard_server.domain.keys import make_event_id
from hansard_server.domain.records import EventRecord, EventType, OpenCall
from hansard_server.repository.commands import Draft

_TYPES: dict[str, EventType] = {
    field.name: EventType(field.number)
    for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields
}
EVENT_TYPES_BY_NAME = dict(_TYPES)
TEXT_TYPES = {EventType.THINKING: TextKind.THINKING, EventType.AGENT_OUTPUT: TextKind.OUTPUT}


def make_draft(
    payload: event_pb2.Event | event_pb2.EventDraft, *, event_id: str | None = None
) -> Draft:
    """Return the draft of an event whose payload field is set; its id is made if none is given.

    `payload` holds its payload field and nothing else, but the id of an EventDraft.
    """
    name = payload.WhichOneof("payload")
    if name is None:
        msg = "an event has no payload"
        raise ValueError(msg)
    given_id = payload.id
    if given_id:
        copy = type(payload)()
        getattr(copy, name).CopyFrom(getattr(payload, name))
        payload = copy
    call = getattr(payload, name) if name in {"tool_input", "tool_output"} else None
    opens = None
    if name == "tool_input" and call is not None:
        opens = OpenCall(call.tool_call_id, call.tool_configuration_name, call.tool_name)
    return Draft(
        id=event_id or given_id or make_event_id(),
        type=_TYPES[name],
        payload=payload.SerializeToString(deterministic=True),
        given_id=bool(given_id),
        tool_call_id=call.tool_call_id if call is not None else None,
        opens=opens,
    )


def text_payload(
    kind: TextKind, content: str, provider_data: bytes, *, partial: bool
) -> event_pb2.Event:
    """Return the event of a finished text."""
    if kind is TextKind.THINKING:
        return event_pb2.Event(
            thinking=event_pb2.Thinking(
                content=content, partial=partial, provider_data=provider_data
            )
        )
    return event_pb2.Event(
        agent_output=event_pb2.AgentOutput(
            content=content, partial=partial, provider_data=provider_data
        )
    )


def interrupted_payload(reason: str) -> event_pb2.Event:
    """Return the event that says that a turn was ended."""
    return event_pb2.Event(session_interrupted=event_pb2.SessionInterrupted(reason=reason))


_TIMED_OUT_JSON = '{"error":"nobody answered in time"}'
_ENDED_JSON = '{"error":"the turn ended before the tool had answered"}'


def close_call(call: OpenCall, output_json: str = _ENDED_JSON) -> Draft:
    """Return the output of a call that its turn left open: INTERRUPTED."""
    return make_output(call, output_json, event_pb2.TOOL_OUTCOME_INTERRUPTED)


def make_output(
    call: OpenCall, output_json: str, outcome: event_pb2.ToolOutcome.ValueType
) -> Draft:
    """Return the output of an open call; every outcome but COMPLETED is an error."""
    return make_draft(
        event_pb2.Event(
            tool_output=event_pb2.ToolOutput(
                tool_call_id=call.tool_call_id,
                tool_configuration_name=call.tool_configuration_name,
                tool_name=call.tool_name,
                tool_output_json=output_json,
                error=outcome != event_pb2.TOOL_OUTCOME_COMPLETED,
                outcome=outcome,
            )
        )
    )


def expire_call(call: OpenCall) -> Draft:
    """Return the output of a call that nobody answered in time: TIMED_OUT."""
    return make_output(call, _TIMED_OUT_JSON, event_pb2.TOOL_OUTCOME_TIMED_OUT)


def encode_event(event: EventRecord, agent_key: str, session_key: str) -> bytes:
    """Return the serialized Event: an encoded header, and behind it the payload as it is stored.

    Serialized messages concatenate: https://protobuf.dev/programming-guides/encoding/#last-one-wins
    """
    header = event_pb2.Event(
        id=event.id,
        agent_key=agent_key,
        session_key=session_key,
        sequence=event.sequence,
        turn_id=event.turn_id or "",
        hide_reason=event_pb2.HideReason.ValueType(int(event.hide_reason)),
    )
    set_time(header.created_at, event.created_at_us)
    if event.deleted_at_us is not None:
        set_time(header.deleted_at, event.deleted_at_us)
    return header.SerializeToString() + event.payload


def decode_event(event: EventRecord) -> event_pb2.Event:
    """Return the event as a message, without the keys of its agent and session."""
    message = event_pb2.Event.FromString(event.payload)
    message.id = event.id
    message.sequence = event.sequence
    message.turn_id = event.turn_id or ""
    set_time(message.created_at, event.created_at_us)
    return message


def set_time(field: object, time_us: int) -> None:
    """Set a Timestamp field to a time in microseconds."""
    seconds, microseconds = divmod(time_us, MICROSECONDS_PER_SECOND)
    field.seconds = seconds  # type: ignore[attr-defined]
    field.nanos = microseconds * 1_000  # type: ignore[attr-defined]
