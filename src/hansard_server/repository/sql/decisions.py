"""Decisions: what each command does to a session that is locked and loaded. Pure.

A decision first looks at everything that could refuse the command, and only then changes the
state: a refused command leaves nothing, without a savepoint.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from hansard_server.domain.errors import (
    AgentDisabled,
    EventAlreadyExists,
    QueueFull,
    QuotaExceeded,
    QuotaUse,
    RequestIdReused,
    SequenceMismatch,
    SessionBusy,
    SessionDisabled,
    ToolCallNotPending,
    TurnNotFound,
)
from hansard_server.domain.records import (
    ArtifactRecord,
    Claim,
    EventRecord,
    EventType,
    OpenCall,
    PendingState,
    SessionStatus,
    TurnRecord,
    TurnStatus,
)
from hansard_server.domain.values import dataclass
from hansard_server.repository.commands import (
    Accepted,
    AcceptInput,
    AppendDrafts,
    Appended,
    ArtifactQuota,
    CancelQueued,
    ClaimScope,
    Draft,
    FindInterrupted,
    Finished,
    FinishTurn,
    HandOn,
    Interruptible,
    LeaseLost,
    Recorded,
    RecordStep,
    StartNext,
    TakeTurn,
    TurnRef,
    UnreadInput,
    WhenBusy,
)
from hansard_server.repository.sql.state import Claimed, HeldTurn, SessionState


@dataclass(frozen=True, slots=True)
class Named:
    """What is known of a session that a command names by its keys."""

    tenant: str
    uid: str
    enabled: bool
    agent_enabled: bool


def append_drafts(state: SessionState, named: Named, command: AppendDrafts) -> Appended:
    """Decide AppendDrafts; see there."""
    earlier = _find_claim(state, command.scope, command.claim)
    if earlier is not None:
        return Appended(session_uid=state.uid, events=earlier.events or ())
    check_enabled(named)
    if command.fault is not None:
        raise command.fault
    only_custom = all(draft.type is EventType.CUSTOM for draft in command.drafts)
    if state.head.busy and not only_custom and not command.while_busy:
        raise _busy()
    check_sequence(state, command.expected_last_sequence)
    if command.upload is not None:
        _check_quota(state, command.upload.artifacts, command.upload.quota)
    fresh = _check_drafts(state, command.drafts)
    _check_events(state, len(fresh), command.max_events)

    places: list[tuple[str, int]] = []
    for draft in command.drafts:
        if draft.id in fresh:
            fresh.discard(draft.id)
            places.append((draft.id, state.write_event(draft, None).sequence))
        else:
            places.append((draft.id, state.known_events[draft.id][0]))
    if command.upload is not None:
        state.add_artifacts(command.upload.artifacts)
    if command.claim is not None:
        state.claim(
            (command.scope, command.claim.request_id),
            Claimed(command.claim.fingerprint, None, tuple(places)),
        )
    return Appended(session_uid=state.uid, events=tuple(places))


def accept_input(state: SessionState, named: Named, command: AcceptInput) -> Accepted:
    """Decide AcceptInput; see there."""
    earlier = find_sent(state, command.claim)
    if earlier is not None:
        return earlier
    check_enabled(named)
    if command.fault is not None:
        raise command.fault
    _check_events(state, 1, command.max_events)
    head = state.head
    if head.busy:
        if command.when_busy is WhenBusy.REJECT or command.expected_last_sequence is not None:
            raise _busy()
        if command.when_busy is WhenBusy.STEER and head.unfinished_turn_id is not None:
            running = state.turns[head.unfinished_turn_id]
            # A turn that compacts asks its model for a summary, and for no answer.
            if running.record.input_type is not EventType.COMPACTION:
                return _steer(state, running, command)
        if head.queued_turns >= command.queue_max_inputs:
            msg = f"{head.queued_turns} inputs wait in the session already, as many as may wait"
            raise QueueFull(
                msg,
                retry_after_s=1.0,
                quota=QuotaUse.of_session(
                    state.uid,
                    "queue_max_inputs",
                    limit=command.queue_max_inputs,
                    used=head.queued_turns,
                ),
            )
    check_sequence(state, command.expected_last_sequence)

    queued = head.busy
    head.turn_count += 1
    turn = TurnRecord(
        tenant=state.tenant,
        session_uid=state.uid,
        id=command.turn_id,
        number=head.turn_count,
        status=TurnStatus.QUEUED,
        input_event_id=command.input.id,
        input_type=command.input.type,
        input=command.input.payload,
        created_at_us=state.now_us,
    )
    state.new_turns.add(turn.id)
    position = None
    input_event = None
    if queued:
        head.queued_turns += 1
        position = head.queued_turns
        state.waiting.append(turn.id)
        state.put_turn(HeldTurn(turn))
        state.head_changed = True
    else:
        turn = state.run_turn(turn, command.lease).record
        input_event = state.new_events[-1] if turn.first_sequence else None
    if command.claim is not None:
        state.claim(
            (ClaimScope.SEND_EVENT, command.claim.request_id),
            Claimed(command.claim.fingerprint, turn.id, None),
        )
    return Accepted(
        turn=turn,
        input_event=input_event,
        position=position,
        claimed=False,
        last_sequence=head.last_sequence,
    )


def _steer(state: SessionState, held: HeldTurn, command: AcceptInput) -> Accepted:
    event = state.write_event(command.input, held.record.id)
    turn = replace(held.record, last_sequence=event.sequence, steered_sequence=event.sequence)
    state.put_turn(replace(held, record=turn))
    if command.claim is not None:
        state.claim(
            (ClaimScope.SEND_EVENT, command.claim.request_id),
            Claimed(command.claim.fingerprint, turn.id, ((event.id, event.sequence),)),
        )
    return Accepted(
        turn=turn,
        input_event=event,
        position=None,
        claimed=False,
        last_sequence=event.sequence,
        from_sequence=event.sequence,
    )


def record_step(state: SessionState, command: RecordStep) -> Recorded:
    """Decide RecordStep; see there."""
    held = hold(state, command.turn)
    made = tuple(artifact for draft in command.drafts for artifact in draft.artifacts)
    if made and command.quota is not None:
        _check_quota(state, made, command.quota)
    turn, written = write_turn_events(state, held.record, command.drafts)
    pending = tuple(
        replace(call, state=PendingState.BEGUN) if call.tool_call_id in command.begun else call
        for call in turn.pending_calls
    )
    turn = replace(turn, usage=turn.usage + command.usage, pending_calls=pending)
    state.head.usage += command.usage
    state.head_changed = True
    state.put_turn(replace(held, record=turn))
    return Recorded(events=tuple(written), last_sequence=state.head.last_sequence)


def finish_turn(state: SessionState, command: FinishTurn) -> Finished:
    """Decide FinishTurn; see there."""
    held = hold(state, command.turn, waiting=command.waiting)
    if (
        command.status is TurnStatus.COMPLETED
        and command.read_sequence is not None
        and held.record.steered_sequence > command.read_sequence
    ):
        raise UnreadInput
    turn, written = write_turn_events(state, held.record, command.drafts)
    closing = tuple(command.close_call(call) for call in turn.open_calls)
    turn, closed = write_turn_events(state, turn, closing)
    turn = replace(
        turn,
        status=command.status,
        usage=turn.usage + command.usage,
        error=command.error,
        pending_calls=(),
        ended_at_us=state.now_us,
    )
    head = state.head
    head.usage += command.usage
    head.status = SessionStatus.IDLE
    head.unfinished_turn_id = None
    state.touch()
    state.put_turn(HeldTurn(turn))
    if command.claim is not None:
        said = next(e for e in written if e.type is EventType.SESSION_INTERRUPTED)
        state.claim(
            (ClaimScope.SEND_EVENT, command.claim.request_id),
            Claimed(command.claim.fingerprint, turn.id, ((said.id, said.sequence),)),
        )
    next_turn = state.start_next(command.lease) if command.start_next else None
    return Finished(
        turn=turn,
        events=(*written, *closed),
        last_sequence=head.last_sequence,
        next_turn=next_turn,
    )


def take_turn(state: SessionState, command: TakeTurn) -> TurnRecord:
    """Decide TakeTurn; see there."""
    held = state.turns.get(command.turn_id)
    if held is None or held.record.status is not TurnStatus.RUNNING:
        raise LeaseLost
    lease_holds = held.lease_until_us is not None and held.lease_until_us > state.now_us
    if lease_holds and not command.force:
        raise LeaseLost
    turn = held.record
    attempt = turn.attempt
    # An owner that handed the turn on has left no name behind.
    if held.lease_owner is not None:
        attempt = attempt + 1 if turn.last_sequence == turn.taken_sequence else 1
    turn = replace(turn, fence=turn.fence + 1, attempt=attempt, taken_sequence=turn.last_sequence)
    state.put_turn(state.lease_turn(turn, command.lease))
    return turn


def hand_on(state: SessionState, command: HandOn) -> None:
    """Decide HandOn; see there."""
    held = hold(state, command.turn)
    turn, _ = write_turn_events(state, held.record, command.drafts)
    state.head.usage += command.usage
    state.head_changed = True
    state.put_turn(HeldTurn(replace(turn, usage=turn.usage + command.usage, fence=turn.fence + 1)))


def cancel_queued(state: SessionState, command: CancelQueued) -> TurnRecord:
    """Decide CancelQueued; see there."""
    held = state.turns.get(command.turn_id)
    if held is None:
        raise TurnNotFound.of_field("turn_id", f"there is no turn {command.turn_id!r}")
    turn = held.record
    if turn.status is not TurnStatus.QUEUED:
        return turn
    turn = replace(turn, status=TurnStatus.INTERRUPTED, ended_at_us=state.now_us)
    state.put_turn(HeldTurn(turn))
    with contextlib.suppress(ValueError):
        state.waiting.remove(turn.id)
    state.head.queued_turns -= 1
    state.touch()
    return turn


def find_interrupted(state: SessionState, named: Named, command: FindInterrupted) -> Interruptible:
    """Decide FindInterrupted; see there."""
    claimed = find_sent(state, command.claim)
    if claimed is None and command.for_input:
        check_enabled(named)
        if command.fault is not None:
            raise command.fault
        if command.needs_idle and state.head.busy:
            raise _busy()
    if command.ended is not None and command.claim is not None and claimed is None:
        state.turns.setdefault(command.ended.id, HeldTurn(command.ended))
        state.claim(
            (ClaimScope.SEND_EVENT, command.claim.request_id),
            # Without an event of its own it has a place alone.
            Claimed(command.claim.fingerprint, command.ended.id, (("", command.from_sequence),)),
        )
    turn_id = state.head.unfinished_turn_id
    if command.turn_id not in {None, turn_id}:
        turn_id = None
    return Interruptible(
        session_uid=state.uid,
        turn=None if turn_id is None else state.turns[turn_id].record,
        last_sequence=state.head.last_sequence,
        claimed=claimed,
    )


def start_next(state: SessionState, command: StartNext) -> TurnRecord | None:
    """Decide StartNext; see there."""
    if state.head.unfinished_turn_id is not None:
        return None
    return state.start_next(command.lease)


def find_sent(state: SessionState, claim: Claim | None) -> Accepted | None:
    """Return the turn that the claim was made for, if it was. Raises RequestIdReused."""
    earlier = _find_claim(state, ClaimScope.SEND_EVENT, claim)
    if earlier is None or earlier.turn_id is None:
        return None
    return Accepted(
        turn=state.turns[earlier.turn_id].record,
        input_event=None,
        position=None,
        claimed=True,
        last_sequence=state.head.last_sequence,
        from_sequence=earlier.events[0][1] if earlier.events else 0,
    )


def _find_claim(state: SessionState, scope: ClaimScope, claim: Claim | None) -> Claimed | None:
    if claim is None:
        return None
    earlier = state.claims.get((scope, claim.request_id))
    if earlier is not None and earlier.fingerprint != claim.fingerprint:
        raise RequestIdReused.of_field(
            "request_id", "was used in this session for a request with another content"
        )
    return earlier


def check_enabled(named: Named) -> None:
    """Raise AgentDisabled, SessionDisabled."""
    if not named.agent_enabled:
        msg = "the agent is disabled"
        raise AgentDisabled(msg)
    if not named.enabled:
        msg = "the session is disabled"
        raise SessionDisabled(msg)


def _busy() -> SessionBusy:
    return SessionBusy("a turn of the session is unfinished", retry_after_s=1.0)


def check_sequence(state: SessionState, expected: int | None) -> None:
    """Raise SequenceMismatch unless the session's last sequence is the expected one."""
    last = state.head.last_sequence
    if expected is not None and expected != last:
        msg = f"expected_last_sequence: is {expected}, but the session's last sequence is {last}"
        raise SequenceMismatch(msg, metadata={"last_sequence": str(last)})


def _check_events(state: SessionState, more: int, max_events: int) -> None:
    used = state.head.last_sequence
    if max_events and more and used + more > max_events:
        msg = f"the session would have {used + more} events, and may have {max_events}"
        raise QuotaExceeded(
            msg,
            quota=QuotaUse.of_session(state.uid, "session_max_events", limit=max_events, used=used),
        )


def _check_quota(
    state: SessionState, artifacts: tuple[ArtifactRecord, ...], quota: ArtifactQuota
) -> None:
    head = state.head
    files = head.artifact_files + len(artifacts)
    size_bytes = head.artifact_bytes + sum(a.size_bytes for a in artifacts)
    if files > quota.max_files:
        msg = f"the session would have {files} artifacts, and may have {quota.max_files}"
        name, limit, used = "session_artifacts_max_files", quota.max_files, head.artifact_files
    elif size_bytes > quota.max_bytes:
        msg = f"the session's artifacts would be {size_bytes} bytes, and may be {quota.max_bytes}"
        name, limit, used = "session_artifacts_max_bytes", quota.max_bytes, head.artifact_bytes
    else:
        return
    raise QuotaExceeded(msg, quota=QuotaUse.of_session(state.uid, name, limit=limit, used=used))


def _check_drafts(state: SessionState, drafts: tuple[Draft, ...]) -> set[str]:
    """Return the ids of the drafts that are to be written."""
    seen: dict[str, tuple[EventType, bytes]] = {
        id_: (type_, payload) for id_, (_, type_, payload) in state.known_events.items()
    }
    calls = {id_: (set(call.types), call.deleted) for id_, call in state.calls.items()}
    fresh: set[str] = set()
    for index, draft in enumerate(drafts):
        if draft.id in seen:
            if seen[draft.id] != (draft.type, draft.payload):
                raise EventAlreadyExists.of_field(
                    f"events[{index}].id", f"{draft.id} is another event of this session"
                )
            continue
        _check_call(calls, draft, index)
        seen[draft.id] = (draft.type, draft.payload)
        fresh.add(draft.id)
    return fresh


def _check_call(calls: dict[str, tuple[set[EventType], bool]], draft: Draft, index: int) -> None:
    if draft.tool_call_id is None:
        return
    types, deleted = calls.setdefault(draft.tool_call_id, (set(), False))
    if draft.type is EventType.TOOL_INPUT and types:
        raise EventAlreadyExists.of_field(
            f"events[{index}].tool_input.tool_call_id",
            f"{draft.tool_call_id} is another call of this session",
        )
    if draft.type is EventType.TOOL_OUTPUT and (deleted or types != {EventType.TOOL_INPUT}):
        raise ToolCallNotPending.of_field(
            f"events[{index}].tool_output.tool_call_id", f"{draft.tool_call_id} is not an open call"
        )
    types.add(draft.type)


def hold(state: SessionState, ref: TurnRef, *, waiting: bool = False) -> HeldTurn:
    """Return the turn that runs, or waits for somebody, under this fence. Raises LeaseLost."""
    held = state.turns.get(ref.turn_id)
    status = TurnStatus.REQUIRES_ACTION if waiting else TurnStatus.RUNNING
    if held is None or held.record.status is not status or held.record.fence != ref.fence:
        raise LeaseLost
    return held


def write_turn_events(
    state: SessionState, turn: TurnRecord, drafts: tuple[Draft, ...]
) -> tuple[TurnRecord, list[EventRecord]]:
    """Write events of the turn; return it with the calls that are open then, and the events."""
    if not drafts:
        return turn, []
    open_calls: dict[str, OpenCall] = {call.tool_call_id: call for call in turn.open_calls}
    for draft in drafts:
        if draft.opens is not None:
            open_calls[draft.opens.tool_call_id] = draft.opens
        elif draft.type is EventType.TOOL_OUTPUT and draft.tool_call_id is not None:
            open_calls.pop(draft.tool_call_id, None)
    written = [state.write_event(draft, turn.id) for draft in drafts]
    for draft in drafts:
        state.add_artifacts(draft.artifacts)
        state.hidden.update(draft.hides)
    turn = replace(
        turn,
        first_sequence=turn.first_sequence or written[0].sequence,
        last_sequence=written[-1].sequence,
        open_calls=tuple(open_calls.values()),
        pending_calls=tuple(c for c in turn.pending_calls if c.tool_call_id in open_calls),
    )
    return turn, written
