"""A batch of commands as one transaction, by a number of statements that does not grow with it.

The order of the statements is the promise: the heads are locked first, and claims, fences and
duplicates are read by later statements. In one statement with the lock a waiter would check them
against the snapshot from before its wait.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
)

from hansard_server.domain.clock import Clock
from hansard_server.domain.errors import AgentNotFound, SessionNotFound
from hansard_server.domain.records import EventType, HideReason, SessionStatus, Usage
from hansard_server.domain.values import dataclass
from hansard_server.failpoints import hit
from hansard_server.repository.api import Change
from hansard_server.repository.commands import (
    AcceptInput,
    AnswerCalls,
    AppendDrafts,
    AwaitCalls,
    CancelQueued,
    ClaimScope,
    Command,
    ExpireCalls,
    FindInterrupted,
    FinishTurn,
    HandOn,
    LeaseLost,
    NamedCommand,
    OwnedCommand,
    RecordStep,
    SessionName,
    StartNext,
    TakeTurn,
    WhenBusy,
)
from hansard_server.repository.sql import batch_statements as statements
from hansard_server.repository.sql import decisions, pending
from hansard_server.repository.sql.alterations import hide_summarised
from hansard_server.repository.sql.blobs import share_blobs
from hansard_server.repository.sql.decisions import Named
from hansard_server.repository.sql.keysets import encode_keys
from hansard_server.repository.sql.prepared import rows, write
from hansard_server.repository.sql.rows import (
    artifact_values,
    event_values,
    turn_record,
    turn_values,
)
from hansard_server.repository.sql.state import Call, Claimed, Head, HeldTurn, SessionState

Uid = tuple[str, str]
"""A session: (tenant, uid)."""

Outcome = object
"""What a command came to: its result, or the exception that it raised."""


class Skipped(Exception):  # noqa: N818 - not an error: the command is run again, alone
    """Somebody else holds the session's head; the command has to wait outside the batch."""


@dataclass(slots=True)
class Batch:
    """Runs commands on a connection whose transaction the caller commits.

    Attributes:
        skip_locked: answer Skipped for sessions that are locked elsewhere, instead of waiting.
        changes: after `run`: what the commit will have done, a Change for each session.
    """

    connection: Connection
    clock: Clock
    skip_locked: bool = False
    changes: list[Change] = field(default_factory=list)
    _states: dict[Uid, SessionState] = field(default_factory=dict)
    _named: dict[SessionName, Named | Exception] = field(default_factory=dict)
    _skipped: set[Uid] = field(default_factory=set)
    _altered: dict[Uid, tuple[tuple[int, str], ...]] = field(default_factory=dict)

    def run(self, commands: Sequence[Command]) -> list[Outcome]:
        """Return an outcome for each command, in order. Database errors are raised."""
        self._resolve({c.session for c in commands if isinstance(c, NamedCommand)})
        self._lock({uid for c in commands if (uid := self._uid_of(c)) is not None})
        hit("batch.locked")
        self._load(commands)
        outcomes = [self._decide(command) for command in commands]
        hit("batch.decided")
        self._write()
        hit("batch.written")
        self.changes = [
            Change(
                tenant=state.tenant,
                session_uid=state.uid,
                events=tuple(state.new_events),
                altered=self._altered.get((state.tenant, state.uid), ()),
                turns=tuple(state.turns[id_].record for id_ in state.changed_turns),
            )
            for state in self._states.values()
            if state.head_changed or state.changed_turns
        ]
        return outcomes

    # Reading --------------------------------------------------------------------------------------

    def _resolve(self, names: set[SessionName]) -> None:
        if not names:
            return
        keys = {(name.tenant, name.agent_key, name.session_key) for name in names}
        found = {
            (row.tenant, row.agent_key, row.session_key): row
            for row in rows(self.connection, statements.NAMED, encode_keys(keys))
        }
        for name in names:
            row = found.get((name.tenant, name.agent_key, name.session_key))
            if row is None:
                self._named[name] = AgentNotFound.of_field(
                    "agent_key", f"there is no agent {name.agent_key!r}"
                )
            elif row.session_uid is None or name.uid not in {None, row.session_uid}:
                self._named[name] = session_not_found(name)
            else:
                self._named[name] = Named(
                    name.tenant, row.session_uid, row.session_enabled, row.agent_enabled
                )

    def _uid_of(self, command: Command) -> Uid | None:
        if isinstance(command, NamedCommand):
            named = self._named[command.session]
            return (named.tenant, named.uid) if isinstance(named, Named) else None
        if isinstance(command, OwnedCommand):
            return (command.turn.tenant, command.turn.session_uid)
        return (command.tenant, command.session_uid)

    def _lock(self, uids: set[Uid]) -> None:
        if not uids:
            return
        heads = rows(
            self.connection,
            statements.HEADS_SKIPPING if self.skip_locked else statements.HEADS,
            encode_keys(uids),
        )
        now_us = self._now_us(heads)
        for row in heads:
            if row.deleted:
                uids.discard((row.tenant, row.session_uid))
                continue
            state = SessionState(
                tenant=row.tenant,
                uid=row.session_uid,
                now_us=now_us,
                head=_head(row),
            )
            self._states[row.tenant, row.session_uid] = state
        if self.skip_locked:
            # Some of these may be gone rather than locked: alone, without skipping, that shows.
            self._skipped = uids - self._states.keys()

    def _now_us(self, heads: Sequence[Any]) -> int:
        # Replicas agree on the database's clock; a SQLite store has one process.
        if self.connection.dialect.name == "sqlite":
            return self.clock()
        if self.skip_locked and heads:
            return int(heads[0].now_us)
        return int(rows(self.connection, statements.NOW, {})[0][0])

    def _load(self, commands: Sequence[Command]) -> None:
        wanted = _Wanted()
        for command in commands:
            state = self._state_of(command)
            if state is not None:
                wanted.add(state, command)
        self._load_claims(wanted)
        for row in self._each(statements.TURNS, wanted.turns):
            self._states[row.tenant, row.session_uid].turns[row.id] = _held_turn(row)
        if wanted.waiting:
            waiting = rows(self.connection, statements.NEXT_WAITING, encode_keys(wanted.waiting))
            for row in waiting:
                state = self._states[row.tenant, row.session_uid]
                state.turns[row.id] = _held_turn(row)
                state.waiting.append(row.id)
        for row in self._each(statements.KNOWN_EVENTS, wanted.event_ids):
            known = (row.sequence, EventType(row.type), row.payload)
            self._states[row.tenant, row.session_uid].known_events[row.id] = known
        for row in self._each(statements.CALL_EVENTS, wanted.call_ids):
            calls = self._states[row.tenant, row.session_uid].calls
            call = calls.setdefault(row.tool_call_id, Call())
            call.types.add(EventType(row.type))
            call.hide_reason = HideReason(row.hide_reason)
            call.deleted = call.deleted or row.deleted_at is not None

    def _load_claims(self, wanted: _Wanted) -> None:
        for row in self._each(statements.CLAIMS, wanted.claims):
            events = (
                None if row.events is None else tuple((e[0], e[1]) for e in json.loads(row.events))
            )
            state = self._states[row.tenant, row.session_uid]
            key = (ClaimScope(row.scope), row.request_id)
            state.claims[key] = Claimed(row.fingerprint, row.turn_id, events)
            if row.turn_id is not None:
                wanted.turns.add((row.tenant, row.session_uid, row.turn_id))

    def _each(self, statement: Select[Any], keys: set[Any]) -> Iterable[Any]:
        if not keys:
            return ()
        return rows(self.connection, statement, encode_keys(keys))

    # Deciding -------------------------------------------------------------------------------------

    def _state_of(self, command: Command) -> SessionState | None:
        uid = self._uid_of(command)
        return None if uid is None else self._states.get(uid)

    def _decide(self, command: Command) -> Outcome:
        named: Named | None = None
        if isinstance(command, NamedCommand):
            found = self._named[command.session]
            if isinstance(found, Exception):
                return found
            named = found
        uid = self._uid_of(command)
        state = self._state_of(command)
        if state is None:
            if uid in self._skipped:
                return Skipped()
            if isinstance(command, NamedCommand):
                return session_not_found(command.session)
            return None if isinstance(command, StartNext | ExpireCalls) else LeaseLost()
        try:
            return _apply(state, named, command)
        except Exception as error:  # noqa: BLE001 - the outcome of one command, raised by its waiter
            return error

    # Writing --------------------------------------------------------------------------------------

    def _write(self) -> None:
        states = self._states.values()
        self._execute(
            statements.INSERT_EVENTS,
            [event_values(s.tenant, s.uid, event) for s in states for event in s.new_events],
        )
        self._execute(
            statements.INSERT_CLAIMS,
            [_claim_values(s, key) for s in states for key in s.new_claims],
        )
        self._execute(
            statements.INSERT_TURNS,
            [_turn_row(s.turns[id_]) for s in states for id_ in s.new_turns],
        )
        self._execute(
            statements.UPDATE_TURN,
            [
                _turn_update(s.turns[id_])
                for s in states
                for id_ in s.changed_turns
                if id_ not in s.new_turns
            ],
        )
        for state in states:
            if state.hidden:
                self._hide(state)
        self._execute(statements.UPDATE_HEAD, [_head_update(s) for s in states if s.head_changed])
        # Last, since the blobs are locked from here on, and other sessions may want the same.
        made = share_blobs(self.connection, [a for s in states for a in s.new_artifacts])
        self._execute(statements.INSERT_ARTIFACTS, [artifact_values(a) for a in made])

    def _hide(self, state: SessionState) -> None:
        """Hide what compactions have summarised: of these events those that are still visible."""
        first = state.head.alteration_count + 1
        numbered = hide_summarised(self.connection, (state.tenant, state.uid), state.hidden, first)
        state.head.alteration_count += len(numbered)
        self._altered[state.tenant, state.uid] = numbered

    def _execute(self, statement: Any, values: list[dict[str, Any]]) -> None:
        if values:
            write(self.connection, statement, values)


def session_not_found(name: SessionName) -> SessionNotFound:
    """Return the error for a session that is not there, or is another incarnation."""
    return SessionNotFound.of_field("session_key", f"there is no session {name.session_key!r}")


@dataclass(slots=True)
class _Wanted:
    """The keys of the rows that the commands of a batch need."""

    claims: set[tuple[str, str, int, str]] = field(default_factory=set)
    turns: set[tuple[str, str, str]] = field(default_factory=set)
    waiting: set[Uid] = field(default_factory=set)
    event_ids: set[tuple[str, str, str]] = field(default_factory=set)
    call_ids: set[tuple[str, str, str]] = field(default_factory=set)

    def add(self, state: SessionState, command: Command) -> None:
        """Add what the command needs."""
        tenant, uid = state.tenant, state.uid
        claim = getattr(command, "claim", None)
        if claim is not None:
            scope = command.scope if isinstance(command, AppendDrafts) else ClaimScope.SEND_EVENT
            self.claims.add((tenant, uid, int(scope), claim.request_id))
        if isinstance(command, AppendDrafts):
            for draft in command.drafts:
                if draft.given_id:
                    self.event_ids.add((tenant, uid, draft.id))
                if draft.tool_call_id is not None:
                    self.call_ids.add((tenant, uid, draft.tool_call_id))
        turn_id = _turn_needed(state, command)
        if turn_id is not None:
            self.turns.add((tenant, uid, turn_id))
        if isinstance(command, FinishTurn | StartNext) and state.head.queued_turns > 0:
            self.waiting.add((tenant, uid))


def _turn_needed(state: SessionState, command: Command) -> str | None:
    match command:
        case RecordStep() | FinishTurn() | AwaitCalls() | HandOn():
            return command.turn.turn_id
        case TakeTurn() | ExpireCalls() | CancelQueued():
            return command.turn_id
        case FindInterrupted() | AnswerCalls() | AcceptInput(when_busy=WhenBusy.STEER):
            return state.head.unfinished_turn_id
        case _:
            return None


def _apply(state: SessionState, named: Named | None, command: Command) -> Outcome:
    match command:
        case AppendDrafts() if named is not None:
            return decisions.append_drafts(state, named, command)
        case AcceptInput() if named is not None:
            return decisions.accept_input(state, named, command)
        case AnswerCalls() if named is not None:
            return pending.answer_calls(state, named, command)
        case FindInterrupted() if named is not None:
            return decisions.find_interrupted(state, named, command)
        case _:
            decide: Callable[[SessionState, Any], Outcome] = _DECISIONS[type(command)]
            return decide(state, command)


_DECISIONS: dict[type, Callable[[SessionState, Any], Outcome]] = {
    AwaitCalls: pending.await_calls,
    CancelQueued: decisions.cancel_queued,
    ExpireCalls: pending.expire_calls,
    FinishTurn: decisions.finish_turn,
    HandOn: decisions.hand_on,
    RecordStep: decisions.record_step,
    StartNext: decisions.start_next,
    TakeTurn: decisions.take_turn,
}


def _head(row: Any) -> Head:
    return Head(
        last_sequence=row.last_sequence,
        last_event_at_us=row.last_event_at,
        last_active_at_us=row.last_active_at,
        status=SessionStatus(row.status),
        unfinished_turn_id=row.unfinished_turn_id,
        queued_turns=row.queued_turns,
        turn_count=row.turn_count,
        usage=Usage(row.input_tokens, row.output_tokens, row.reasoning_tokens),
        artifact_files=row.artifact_files,
        artifact_bytes=row.artifact_bytes,
        tti_minutes=row.tti_minutes,
        alteration_count=row.alteration_count,
    )


def _head_update(state: SessionState) -> dict[str, Any]:
    head = state.head
    return {
        "b_tenant": state.tenant,
        "b_session_uid": state.uid,
        "last_sequence": head.last_sequence,
        "last_event_at": head.last_event_at_us,
        "last_active_at": head.last_active_at_us,
        "status": int(head.status),
        "unfinished_turn_id": head.unfinished_turn_id,
        "queued_turns": head.queued_turns,
        "turn_count": head.turn_count,
        "input_tokens": head.usage.input_tokens,
        "output_tokens": head.usage.output_tokens,
        "reasoning_tokens": head.usage.reasoning_tokens,
        "artifact_files": head.artifact_files,
        "artifact_bytes": head.artifact_bytes,
        "expire_at": head.expire_at_us,
        "alteration_count": head.alteration_count,
    }


def _held_turn(row: Any) -> HeldTurn:
    return HeldTurn(turn_record(row), row.lease_owner, row.lease_until, row.lease_address)


def _turn_row(held: HeldTurn) -> dict[str, Any]:
    return {
        **turn_values(held.record),
        "lease_owner": held.lease_owner,
        "lease_until": held.lease_until_us,
        "lease_address": held.lease_address,
    }


def _turn_update(held: HeldTurn) -> dict[str, Any]:
    row = _turn_row(held)
    return {
        "b_tenant": held.record.tenant,
        "b_session_uid": held.record.session_uid,
        "b_id": held.record.id,
        **{name: row[name] for name in statements.TURN_COLUMNS},
    }


def _claim_values(state: SessionState, key: tuple[ClaimScope, str]) -> dict[str, Any]:
    claimed = state.claims[key]
    return {
        "tenant": state.tenant,
        "session_uid": state.uid,
        "scope": int(key[0]),
        "request_id": key[1],
        "fingerprint": claimed.fingerprint,
        "turn_id": claimed.turn_id,
        "events": None
        if claimed.events is None
        else json.dumps(claimed.events, separators=(",", ":")),
    }
