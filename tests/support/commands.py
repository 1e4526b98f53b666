"""Commands and drafts for tests, with what a test does not care about filled in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hansard_server.domain.keys import make_event_id, make_turn_id
from hansard_server.domain.records import (
    AwaitedCall,
    Claim,
    EventType,
    OpenCall,
    PendingKind,
    TurnRecord,
    TurnStatus,
)
from hansard_server.repository.commands import (
    AcceptInput,
    AnswerCalls,
    AnswerKind,
    AppendDrafts,
    AwaitCalls,
    CallAnswer,
    Draft,
    ExpireCalls,
    FinishTurn,
    Lease,
    RecordStep,
    SessionName,
    TurnRef,
    WhenBusy,
)
from tests.support.records import AGENT, SESSION, TENANT

NAME = SessionName(tenant=TENANT, agent_key=AGENT.key, session_key=SESSION.key)
LEASE = Lease(owner="owner-1", duration_s=30.0)


def claim(request_id: str, content: bytes = b"content") -> Claim:
    """Return a claim whose fingerprint follows the content."""
    return Claim(request_id, content.ljust(32, b"."))


def draft(payload: bytes = b"payload", **changes: Any) -> Draft:
    """Return the draft of an agent_output."""
    values: dict[str, Any] = {
        "id": make_event_id(),
        "type": EventType.AGENT_OUTPUT,
        "payload": payload,
    }
    return Draft(**(values | changes))


def custom(payload: bytes = b"custom") -> Draft:
    """Return the draft of a custom event."""
    return draft(payload, type=EventType.CUSTOM)


def tool_input(call_id: str) -> Draft:
    """Return the draft of a tool_input."""
    return draft(
        b"input of " + call_id.encode(),
        type=EventType.TOOL_INPUT,
        tool_call_id=call_id,
        opens=OpenCall(call_id, "lookup", "client"),
    )


def tool_output(call_id: str) -> Draft:
    """Return the draft of a tool_output."""
    return draft(b"output of " + call_id.encode(), type=EventType.TOOL_OUTPUT, tool_call_id=call_id)


def append(*drafts: Draft, **changes: Any) -> AppendDrafts:
    """Return an append to SESSION."""
    values: dict[str, Any] = {"session": NAME, "drafts": drafts or (draft(),)}
    return AppendDrafts(**(values | changes))


def accept(**changes: Any) -> AcceptInput:
    """Return an input to SESSION."""
    values: dict[str, Any] = {
        "session": NAME,
        "turn_id": make_turn_id(),
        "input": draft(b"an input", type=EventType.INPUT_MESSAGE),
        "when_busy": WhenBusy.QUEUE,
        "queue_max_inputs": 16,
        "lease": LEASE,
    }
    return AcceptInput(**(values | changes))


def ref(turn: TurnRecord) -> TurnRef:
    """Return the turn as its owner names it."""
    return TurnRef(
        tenant=turn.tenant, session_uid=turn.session_uid, turn_id=turn.id, fence=turn.fence
    )


def step(turn: TurnRecord, *drafts: Draft, **changes: Any) -> RecordStep:
    """Return a step of the turn."""
    return step_of(ref(turn), *drafts, **changes)


def step_of(turn: TurnRef, *drafts: Draft, **changes: Any) -> RecordStep:
    """Return a step of the turn."""
    return RecordStep(turn=turn, drafts=drafts or (draft(),), **changes)


def finish(turn: TurnRecord, *drafts: Draft, **changes: Any) -> FinishTurn:
    """Return the end of the turn."""
    return finish_of(ref(turn), *drafts, **changes)


def finish_of(turn: TurnRef, *drafts: Draft, **changes: Any) -> FinishTurn:
    """Return the end of the turn."""
    values: dict[str, Any] = {
        "turn": turn,
        "status": TurnStatus.COMPLETED,
        "close_call": lambda call: tool_output(call.tool_call_id),
        "lease": LEASE,
        "drafts": drafts,
    }
    return FinishTurn(**(values | changes))


def close(call: OpenCall) -> Draft:
    """Return the output that closes a call, under an id that follows from it."""
    return replace(tool_output(call.tool_call_id), id=closing_id(call.tool_call_id))


def closing_id(call_id: str) -> str:
    """Return the id of the output that `close` makes."""
    return f"aev_close_{call_id}"


def awaited(call_id: str, kind: PendingKind = PendingKind.APPROVAL, **changes: Any) -> AwaitedCall:
    """Return a call that somebody is to be asked about, for a minute."""
    values: dict[str, Any] = {"tool_call_id": call_id, "kind": kind, "timeout_s": 60.0}
    return AwaitedCall(**(values | changes))


def await_calls(turn: TurnRecord, *calls: AwaitedCall, **changes: Any) -> AwaitCalls:
    """Return the command that has the turn wait."""
    return await_calls_of(ref(turn), *calls, **changes)


def await_calls_of(turn: TurnRef, *calls: AwaitedCall, **changes: Any) -> AwaitCalls:
    """Return the command that has the turn wait."""
    return AwaitCalls(turn=turn, calls=calls, **changes)


def given(call_id: str) -> CallAnswer:
    """Return the output of a client's tool."""
    return CallAnswer(tool_call_id=call_id, kind=AnswerKind.OUTPUT, close=close)


def approve(call_id: str) -> CallAnswer:
    """Return an approval."""
    return CallAnswer(tool_call_id=call_id, kind=AnswerKind.APPROVE, close=close)


def reject(call_id: str) -> CallAnswer:
    """Return a rejection."""
    return CallAnswer(tool_call_id=call_id, kind=AnswerKind.REJECT, close=close)


def answers(*each: CallAnswer, **changes: Any) -> AnswerCalls:
    """Return answers for SESSION."""
    values: dict[str, Any] = {"session": NAME, "answers": each, "lease": LEASE}
    return AnswerCalls(**(values | changes))


def expire(turn: TurnRecord) -> ExpireCalls:
    """Return the command that closes what the turn has waited for too long."""
    return expire_of(turn.session_uid, turn.id)


def expire_of(session_uid: str, turn_id: str) -> ExpireCalls:
    """Return the command that closes what the turn has waited for too long."""
    return ExpireCalls(
        tenant=TENANT, session_uid=session_uid, turn_id=turn_id, close=close, lease=LEASE
    )
