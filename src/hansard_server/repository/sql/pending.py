"""Decisions on turns that wait for somebody: begin to wait, take answers, run out of time. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hansard_server.domain.clock import MICROSECONDS_PER_SECOND
from hansard_server.domain.errors import InvalidRequest, ToolCallNotPending
from hansard_server.domain.records import (
    EventRecord,
    PendingCall,
    PendingKind,
    PendingState,
    SessionStatus,
    TurnRecord,
    TurnStatus,
)
from hansard_server.repository.commands import (
    Accepted,
    AnswerCalls,
    AnswerKind,
    AwaitCalls,
    CallAnswer,
    ClaimScope,
    CloseCall,
    ExpireCalls,
    Lease,
)
from hansard_server.repository.sql.decisions import (
    Named,
    check_enabled,
    check_sequence,
    find_sent,
    hold,
    write_turn_events,
)
from hansard_server.repository.sql.state import Claimed, HeldTurn, SessionState

_FITTING = {
    AnswerKind.OUTPUT: PendingKind.CLIENT_TOOL,
    AnswerKind.APPROVE: PendingKind.APPROVAL,
}
_WANTED = {
    PendingKind.APPROVAL: "an approval: answer with approve or reject",
    PendingKind.CLIENT_TOOL: "the result of a client's tool: answer with output or reject",
}


def await_calls(state: SessionState, command: AwaitCalls) -> TurnRecord:
    """Decide AwaitCalls; see there."""
    held = hold(state, command.turn)
    turn, _ = write_turn_events(state, held.record, command.drafts)
    asked = {call.tool_call_id for call in command.calls}
    pending = tuple(
        PendingCall(
            tool_call_id=call.tool_call_id,
            kind=call.kind,
            expire_at_us=state.now_us + int(call.timeout_s * MICROSECONDS_PER_SECOND),
            override_json=call.override_json,
        )
        for call in command.calls
    )
    others = tuple(call for call in turn.pending_calls if call.tool_call_id not in asked)
    turn = replace(
        turn,
        status=TurnStatus.REQUIRES_ACTION,
        pending_calls=(*others, *pending),
        usage=turn.usage + command.usage,
    )
    head = state.head
    head.usage += command.usage
    head.status = SessionStatus.REQUIRES_ACTION
    state.touch()
    state.put_turn(HeldTurn(turn))
    return turn


def answer_calls(state: SessionState, named: Named, command: AnswerCalls) -> Accepted:
    """Decide AnswerCalls; see there."""
    earlier = find_sent(state, command.claim)
    if earlier is not None:
        return earlier
    check_enabled(named)
    if command.fault is not None:
        raise command.fault
    turn_id = state.head.unfinished_turn_id
    turn = None if turn_id is None else state.turns[turn_id].record
    if turn is None or turn.status is not TurnStatus.REQUIRES_ACTION:
        raise ToolCallNotPending.of_field(
            "tool_results.results", "no turn of the session waits for results or decisions"
        )
    awaited = {call.tool_call_id: call for call in turn.awaited_calls}
    for index, answer in enumerate(command.answers):
        _check_answer(state, awaited.get(answer.tool_call_id), answer, index)
    check_sequence(state, command.expected_last_sequence)

    from_sequence = state.head.last_sequence + 1
    closing = {a.tool_call_id: a.close for a in command.answers if a.kind is not AnswerKind.APPROVE}
    turn, written = _close(state, turn, closing.get)
    answered = {answer.tool_call_id for answer in command.answers}
    pending = tuple(
        replace(call, state=PendingState.APPROVED) if call.tool_call_id in answered else call
        for call in turn.pending_calls
    )
    turn = _go_on(state, replace(turn, pending_calls=pending), command.lease)
    if command.claim is not None:
        # Without an event of its own it has a place alone.
        first = written[0].id if written else ""
        state.claim(
            (ClaimScope.SEND_EVENT, command.claim.request_id),
            Claimed(command.claim.fingerprint, turn.id, ((first, from_sequence),)),
        )
    return Accepted(
        turn=turn,
        input_event=None,
        position=None,
        claimed=False,
        last_sequence=state.head.last_sequence,
        from_sequence=from_sequence,
    )


def expire_calls(state: SessionState, command: ExpireCalls) -> TurnRecord | None:
    """Decide ExpireCalls; see there."""
    held = state.turns.get(command.turn_id)
    if held is None or held.record.status is not TurnStatus.REQUIRES_ACTION:
        return None
    expired = {
        call.tool_call_id: command.close
        for call in held.record.awaited_calls
        if call.expire_at_us <= state.now_us
    }
    if not expired:
        return None
    turn, _ = _close(state, held.record, expired.get)
    turn = _go_on(state, turn, command.lease)
    return turn if turn.status is TurnStatus.RUNNING else None


def _check_answer(
    state: SessionState, call: PendingCall | None, answer: CallAnswer, index: int
) -> None:
    path = f"tool_results.results[{index}]"
    if call is None or call.expire_at_us <= state.now_us:
        why = "is not a pending call" if call is None else "has waited too long"
        raise ToolCallNotPending.of_field(f"{path}.tool_call_id", f"{answer.tool_call_id} {why}")
    if call.kind is not _FITTING.get(answer.kind, call.kind):
        raise InvalidRequest.of_field(
            f"{path}.{answer.kind.value}", f"the call waits for {_WANTED[call.kind]}"
        )


def _close(
    state: SessionState, turn: TurnRecord, closing: Callable[[str], CloseCall | None]
) -> tuple[TurnRecord, list[EventRecord]]:
    """Write the outputs of calls, in the order in which these were made."""
    drafts = tuple(
        close(call) for call in turn.open_calls if (close := closing(call.tool_call_id)) is not None
    )
    return write_turn_events(state, turn, drafts)


def _go_on(state: SessionState, turn: TurnRecord, lease: Lease) -> TurnRecord:
    """Keep the turn, which runs under the lease if it waits for nobody any more; return it.

    Its fence goes up in any case, so that whoever follows it sees that it has changed.
    """
    turn = replace(turn, fence=turn.fence + 1)
    state.touch()
    if turn.awaited_calls:
        state.put_turn(HeldTurn(turn))
        return turn
    state.head.status = SessionStatus.RUNNING
    turn = replace(turn, status=TurnStatus.RUNNING, attempt=1, taken_sequence=turn.last_sequence)
    state.put_turn(state.lease_turn(turn, lease))
    return turn
