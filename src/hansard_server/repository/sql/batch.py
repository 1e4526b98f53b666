"""A batch of commands as one transaction, by a number of statements that does not grow with it.

The order of the statements is the promise: the heads are locked first, and claims, fences and
duplicates are read by later statements. In one statement with the lock a waiter would check them
against the snapshot from before its wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from typing import Any

from sqlalchemy import Connection

from hansard_server.domain.clock import Clock
from hansard_server.domain.errors import AgentNotFound, SessionNotFound
from hansard_server.domain.records import EventType, HideReason
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
from hansard_server.repository.sql.batch_rows import (
    claim_row,
    head_update,
    read_claim,
    read_head,
    read_turn,
    turn_row,
    turn_update,
)
from hansard_server.repository.sql.blobs import share_blobs
from hansard_server.repository.sql.decisions import Named
from hansard_server.repository.sql.keysets import encode_keys
from hansard_server.repository.sql.rows import artifact_values, event_values
from hansard_server.repository.sql.state import Call, SessionState
from hansard_server.repository.sql.trips import Answer, Trip

Uid = tuple[str, str]
"""A session: (tenant, uid)."""
_Key = tuple[str, str, str]
"""A session as it is named: (tenant, agent key, session key)."""

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
COMMIT = "COMMIT"

Outcome = object
"""What a command came to: its result, or the exception that it raised."""


class Skipped(Exception):  # noqa: N818 - not an error: the command is run again, alone
    """Somebody else holds the session's head; the command has to wait outside the batch."""


class Guesses:
    """The sessions that names were last known to mean, of so many names: they rarely change."""

    def __init__(self, max_names: int = 50_000) -> None:
        """Keep none yet."""
        self._uids: dict[_Key, str] = {}
        self._max_names = max_names

    def guess(self, name: SessionName) -> str | None:
        """Return the uid that the name may mean."""
        return name.uid or self._uids.get(_key(name))

    def learn(self, name: SessionName, uid: str) -> None:
        """Keep what the name means."""
        self._uids.pop(_key(name), None)
        self._uids[_key(name)] = uid
        if len(self._uids) > self._max_names:
            del self._uids[next(iter(self._uids))]


@dataclass(slots=True)
class Batch:
    """Runs commands on a connection, in a transaction that the caller begins and commits.

    Attributes:
        skip_locked: answer Skipped for sessions that are locked elsewhere, instead of waiting.
        guesses: for a batch that is the whole transaction, of commands that skip what is locked:
            its first statements begin it, its last ones commit it, and sessions that are guessed
            right are read together with their names. The connection does none of that.
        changes: after `run`: what the commit will have done, a Change for each session.
        ending: the batch has asked for its own commit.
    """

    connection: Connection
    clock: Clock
    skip_locked: bool = False
    guesses: Guesses | None = None
    changes: list[Change] = field(default_factory=list)
    ending: bool = False
    _states: dict[Uid, SessionState] = field(default_factory=dict)
    _named: dict[SessionName, Named | Exception] = field(default_factory=dict)
    _uids: dict[SessionName, Uid | None] = field(default_factory=dict)
    _asked: set[Uid] = field(default_factory=set)
    _gone: set[Uid] = field(default_factory=set)
    _altered: dict[Uid, tuple[tuple[int, str], ...]] = field(default_factory=dict)

    def run(self, commands: Sequence[Command]) -> list[Outcome]:
        """Return an outcome for each command, in order. Database errors are raised."""
        self._read(commands)
        hit("batch.locked")
        outcomes = [self._decide(command) for command in commands]
        hit("batch.decided")
        self._write()
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

    def _read(self, commands: Sequence[Command]) -> None:
        """Resolve names, lock heads, and load what the commands need of their sessions."""
        names = {c.session for c in commands if isinstance(c, NamedCommand)}
        trip = Trip(self.connection)
        if self.guesses is not None:
            trip.say(BEGIN)
            self._guess(names)
        named = trip.ask(statements.NAMED, encode_keys({_key(n) for n in names})) if names else None
        # Otherwise all heads are locked by one statement, when all are known.
        at_once = self.guesses is not None or named is None
        asked = [self._uid_of(command) if at_once else None for command in commands]
        found = self._ask(
            trip, [c for c, uid in zip(commands, asked, strict=True) if uid is not None]
        )
        trip.make()
        if named is not None:
            self._resolve(names, named.rows)
        self._keep(found)
        later = [
            command
            for command, uid in zip(commands, asked, strict=True)
            if self._uid_of(command) not in {None, uid}
        ]
        if later:
            found = self._ask(trip, later)
            trip.make()
            self._keep(found)
        self._follow(trip, commands)

    def _guess(self, names: Iterable[SessionName]) -> None:
        for name in names:
            uid = self.guesses.guess(name) if self.guesses is not None else None
            self._uids[name] = None if uid is None else (name.tenant, uid)

    def _resolve(self, names: Iterable[SessionName], rows: Iterable[Any]) -> None:
        found = {(row.tenant, row.agent_key, row.session_key): row for row in rows}
        for name in names:
            row = found.get(_key(name))
            self._uids[name] = None
            if row is None:
                self._named[name] = AgentNotFound.of_field(
                    "agent_key", f"there is no agent {name.agent_key!r}"
                )
            elif row.session_uid is None or name.uid not in {None, row.session_uid}:
                self._named[name] = session_not_found(name)
            else:
                self._uids[name] = (name.tenant, row.session_uid)
                self._named[name] = Named(
                    name.tenant, row.session_uid, row.session_enabled, row.agent_enabled
                )
                if self.guesses is not None:
                    self.guesses.learn(name, row.session_uid)

    def _uid_of(self, command: Command) -> Uid | None:
        """Return the command's session, as far as that is known or guessed."""
        if isinstance(command, NamedCommand):
            return self._uids.get(command.session)
        if isinstance(command, OwnedCommand):
            return (command.turn.tenant, command.turn.session_uid)
        return (command.tenant, command.session_uid)

    def _ask(self, trip: Trip, commands: Sequence[Command]) -> _Found:
        """Have the trip lock the heads of the commands' sessions, and read what each needs."""
        wanted = _Wanted()
        uids: set[Uid] = set()
        for command in commands:
            uid = self._uid_of(command)
            if uid is not None:
                uids.add(uid)
                wanted.add(uid, command)
        uids -= self._asked
        self._asked |= uids
        found = _Found()
        if uids:
            heads = statements.HEADS_SKIPPING if self.skip_locked else statements.HEADS
            found.heads = trip.ask(heads, encode_keys(uids))
            if not self.skip_locked and not self._sqlite:
                found.now = trip.ask(statements.NOW, {})
        if wanted.claims:
            found.claims = trip.ask(statements.CLAIMS, encode_keys(wanted.claims))
        if wanted.turns:
            found.turns = trip.ask(statements.TURNS, encode_keys(wanted.turns))
        if wanted.event_ids:
            found.events = trip.ask(statements.KNOWN_EVENTS, encode_keys(wanted.event_ids))
        if wanted.call_ids:
            found.calls = trip.ask(statements.CALL_EVENTS, encode_keys(wanted.call_ids))
        return found

    @property
    def _sqlite(self) -> bool:
        return self.connection.dialect.name == "sqlite"

    def _keep(self, found: _Found) -> None:
        """Keep what was found of the sessions that are there and locked."""
        for row in found.heads.rows:
            uid = (row.tenant, row.session_uid)
            if row.deleted:
                self._gone.add(uid)
                continue
            self._states[uid] = SessionState(
                tenant=row.tenant,
                uid=row.session_uid,
                now_us=self._now_us(row, found),
                head=read_head(row),
            )
        for state, row in self._of_states(found.claims):
            key, claimed = read_claim(row)
            state.claims[key] = claimed
        for state, row in self._of_states(found.turns):
            state.turns[row.id] = read_turn(row)
        for state, row in self._of_states(found.events):
            state.known_events[row.id] = (row.sequence, EventType(row.type), row.payload)
        for state, row in self._of_states(found.calls):
            call = state.calls.setdefault(row.tool_call_id, Call())
            call.types.add(EventType(row.type))
            call.hide_reason = HideReason(row.hide_reason)
            call.deleted = call.deleted or row.deleted_at is not None

    def _of_states(self, answer: Answer) -> Iterator[tuple[SessionState, Any]]:
        for row in answer.rows:
            state = self._states.get((row.tenant, row.session_uid))
            if state is not None:
                yield state, row

    def _now_us(self, head: Any, found: _Found) -> int:
        # Replicas agree on the database's clock; a SQLite store has one process.
        if self._sqlite:
            return self.clock()
        return int(head.now_us if self.skip_locked else found.now.rows[0].now_us)

    def _follow(self, trip: Trip, commands: Sequence[Command]) -> None:
        """Load the turns that claims and heads name, which had to be read first."""
        turns: set[tuple[str, str, str]] = set()
        waiting: set[Uid] = set()
        for uid, state in self._states.items():
            turns.update((*uid, c.turn_id) for c in state.claims.values() if c.turn_id is not None)
        for command in commands:
            locked = self._state_of(command)
            if locked is None:
                continue
            turn_id = locked.head.unfinished_turn_id
            if turn_id is not None and _needs_unfinished_turn(command):
                turns.add((locked.tenant, locked.uid, turn_id))
            if isinstance(command, FinishTurn | StartNext) and locked.head.queued_turns > 0:
                waiting.add((locked.tenant, locked.uid))
        turns = {key for key in turns if key[2] not in self._states[key[:2]].turns}
        found = _Found()
        if turns:
            found.turns = trip.ask(statements.TURNS, encode_keys(turns))
        next_waiting = trip.ask(statements.NEXT_WAITING, encode_keys(waiting)) if waiting else None
        if turns or waiting:
            trip.make()
            self._keep(found)
        if next_waiting is not None:
            for state, row in self._of_states(next_waiting):
                state.turns[row.id] = read_turn(row)
                state.waiting.append(row.id)

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
            # It may not be there rather than locked: alone, without skipping, that shows.
            if self.skip_locked and uid not in self._gone:
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
        trip = Trip(self.connection)
        trip.tell(
            statements.INSERT_EVENTS,
            [event_values(s.tenant, s.uid, event) for s in states for event in s.new_events],
        )
        trip.tell(
            statements.INSERT_CLAIMS, [claim_row(s, key) for s in states for key in s.new_claims]
        )
        trip.tell(
            statements.INSERT_TURNS, [turn_row(s.turns[id_]) for s in states for id_ in s.new_turns]
        )
        trip.tell(
            statements.UPDATE_TURN,
            [
                turn_update(s.turns[id_])
                for s in states
                for id_ in s.changed_turns
                if id_ not in s.new_turns
            ],
        )
        hiding = [state for state in states if state.hidden]
        if hiding:
            trip.make()
            for state in hiding:
                self._hide(state)
        trip.tell(statements.UPDATE_HEAD, [head_update(s) for s in states if s.head_changed])
        made = [artifact for state in states for artifact in state.new_artifacts]
        if made:
            # Last, since the blobs are locked from here on, and other sessions may want the same.
            trip.make()
            shared = share_blobs(self.connection, made)
            trip.tell(statements.INSERT_ARTIFACTS, [artifact_values(a) for a in shared])
        self._end(trip)

    def _end(self, trip: Trip) -> None:
        if self.guesses is None:
            trip.make()
            hit("batch.written")
        else:
            # What is left of the writes is not sent yet: it goes with the commit.
            hit("batch.written")
            trip.say(COMMIT)
            self.ending = True
            trip.make()

    def _hide(self, state: SessionState) -> None:
        """Hide what compactions have summarised: of these events those that are still visible."""
        first = state.head.alteration_count + 1
        numbered = hide_summarised(self.connection, (state.tenant, state.uid), state.hidden, first)
        state.head.alteration_count += len(numbered)
        self._altered[state.tenant, state.uid] = numbered


def session_not_found(name: SessionName) -> SessionNotFound:
    """Return the error for a session that is not there, or is another incarnation."""
    return SessionNotFound.of_field("session_key", f"there is no session {name.session_key!r}")


def _key(name: SessionName) -> _Key:
    return (name.tenant, name.agent_key, name.session_key)


@dataclass(slots=True)
class _Found:
    """The answers of one trip."""

    heads: Answer = field(default_factory=Answer)
    now: Answer = field(default_factory=Answer)
    claims: Answer = field(default_factory=Answer)
    turns: Answer = field(default_factory=Answer)
    events: Answer = field(default_factory=Answer)
    calls: Answer = field(default_factory=Answer)


@dataclass(slots=True)
class _Wanted:
    """The keys of the rows that the commands of a batch need."""

    claims: set[tuple[str, str, int, str]] = field(default_factory=set)
    turns: set[tuple[str, str, str]] = field(default_factory=set)
    event_ids: set[tuple[str, str, str]] = field(default_factory=set)
    call_ids: set[tuple[str, str, str]] = field(default_factory=set)

    def add(self, uid: Uid, command: Command) -> None:
        """Add what the command needs of its session, whatever its head says."""
        claim = getattr(command, "claim", None)
        if claim is not None:
            scope = command.scope if isinstance(command, AppendDrafts) else ClaimScope.SEND_EVENT
            self.claims.add((*uid, int(scope), claim.request_id))
        match command:
            case AppendDrafts():
                for draft in command.drafts:
                    if draft.given_id:
                        self.event_ids.add((*uid, draft.id))
                    if draft.tool_call_id is not None:
                        self.call_ids.add((*uid, draft.tool_call_id))
            case RecordStep() | FinishTurn() | AwaitCalls() | HandOn():
                self.turns.add((*uid, command.turn.turn_id))
            case TakeTurn() | ExpireCalls() | CancelQueued():
                self.turns.add((*uid, command.turn_id))


def _needs_unfinished_turn(command: Command) -> bool:
    match command:
        case FindInterrupted() | AnswerCalls() | AcceptInput(when_busy=WhenBusy.STEER):
            return True
        case _:
            return False


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
