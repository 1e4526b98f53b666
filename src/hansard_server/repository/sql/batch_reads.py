"""The sessions of a batch's commands: names are resolved, heads locked, and what each needs loaded.

The order of the statements is the promise: the heads are locked first, and claims, fences and
duplicates are read by later statements. In one statement with the lock a waiter would check them
against the snapshot from before its wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from typing import Any, TypeGuard

from hansard_server.domain.clock import Clock
from hansard_server.domain.errors import AgentNotFound, SessionNotFound
from hansard_server.domain.records import EventType, HideReason
from hansard_server.domain.values import dataclass
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
    NamedCommand,
    OwnedCommand,
    RecordStep,
    SessionName,
    StartNext,
    TakeTurn,
    WhenBusy,
)
from hansard_server.repository.sql import batch_statements as statements
from hansard_server.repository.sql.batch_rows import read_claim, read_head, read_turn
from hansard_server.repository.sql.decisions import Named
from hansard_server.repository.sql.keysets import encode_keys
from hansard_server.repository.sql.known import KnownSessions, Uid, name_key
from hansard_server.repository.sql.state import Call, SessionState
from hansard_server.repository.sql.trips import Answer, Trip


@dataclass(slots=True)
class BatchSessions:
    """The sessions of a batch, as they are under their locks.

    Attributes:
        sqlite: whether the database is SQLite; otherwise the time is the database's.
        skip_locked: leave out what is locked elsewhere, instead of waiting.
        known: sessions whose uid is guessed right are read together with their names. Heads are
            locked by several statements then, so that `skip_locked` goes with it.
        own_version: the transaction's, if it has locked a head so; see `transaction_version`.
        states: those that are there and locked.
        named: what commands that name a session meet there, or the error for it.
    """

    sqlite: bool
    clock: Clock
    skip_locked: bool
    known: KnownSessions | None
    own_version: str = ""
    states: dict[Uid, SessionState] = field(default_factory=dict)
    named: dict[SessionName, Named | Exception] = field(default_factory=dict)
    _uids: dict[SessionName, Uid | None] = field(default_factory=dict)
    _asked: set[Uid] = field(default_factory=set)
    _gone: set[Uid] = field(default_factory=set)

    def read(self, trip: Trip, commands: Sequence[Command]) -> None:
        """Resolve names, lock heads, and load what the commands need of their sessions.

        The trip may bring something that comes first. Raises DBAPIError.
        """
        if self.sqlite and len(commands) == 1 and _needs_claim_alone(commands[0]):
            self._read_lone(trip, commands[0])
            self._follow(trip, commands)
            return
        names = {c.session for c in commands if isinstance(c, NamedCommand)}
        if self.known is not None:
            self._guess(names, self.known)
        keys = {name_key(name) for name in names}
        named = trip.ask(statements.NAMED, encode_keys(keys)) if keys else None
        # Otherwise all heads are locked by one statement, when all are known.
        at_once = self.known is not None or named is None
        asked = [self.uid_of(command) if at_once else None for command in commands]
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
            if self.uid_of(command) not in {None, uid}
        ]
        if later:
            found = self._ask(trip, later)
            trip.make()
            self._keep(found)
        self._follow(trip, commands)

    def _read_lone(self, trip: Trip, command: AppendDrafts | AcceptInput) -> None:
        """Read by one statement what the plain way reads by three."""
        name, claim = command.session, command.claim
        values = {
            "b_tenant": name.tenant,
            "b_agent_key": name.agent_key,
            "b_session_key": name.session_key,
            "b_scope": int(_scope(command)),
            # No claim has the empty one.
            "b_request_id": "" if claim is None else claim.request_id,
        }
        answer = trip.ask(statements.LONE, values)
        trip.make()
        self._resolve((name,), answer.rows)
        if self._uids[name] is None:
            return
        found = _Found()
        found.heads = answer
        found.claims.rows = [row for row in answer.rows if row.request_id is not None]
        self._keep(found)

    def _guess(self, names: Iterable[SessionName], known: KnownSessions) -> None:
        for name in names:
            uid = known.find_uid(name)
            self._uids[name] = None if uid is None else (name.tenant, uid)

    def _resolve(self, names: Iterable[SessionName], rows: Iterable[Any]) -> None:
        found = {(row.tenant, row.agent_key, row.session_key): row for row in rows}
        for name in names:
            row = found.get(name_key(name))
            self._uids[name] = None
            if row is None:
                self.named[name] = AgentNotFound.of_field(
                    "agent_key", f"there is no agent {name.agent_key!r}"
                )
            elif row.session_uid is None or name.uid not in {None, row.session_uid}:
                self.named[name] = session_not_found(name)
            else:
                self._uids[name] = (name.tenant, row.session_uid)
                named = Named(name.tenant, row.session_uid, row.session_enabled, row.agent_enabled)
                self.named[name] = named
                if self.known is not None:
                    self.known.learn_name(name, named)

    def is_gone(self, command: Command) -> bool:
        """Tell whether the command's session was deleted, rather than locked elsewhere."""
        return self.uid_of(command) in self._gone

    def uid_of(self, command: Command) -> Uid | None:
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
            uid = self.uid_of(command)
            if uid is not None:
                uids.add(uid)
                wanted.add(uid, command)
        uids -= self._asked
        self._asked |= uids
        found = _Found()
        if uids:
            heads = statements.HEADS_SKIPPING if self.skip_locked else statements.HEADS
            found.heads = trip.ask(heads, encode_keys(uids))
            if not self.skip_locked and not self.sqlite:
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

    def _keep(self, found: _Found) -> None:
        """Keep what was found of the sessions that are there and locked."""
        for row in found.heads.rows:
            uid = (row.tenant, row.session_uid)
            if row.deleted:
                self._gone.add(uid)
                continue
            state = self.states[uid] = SessionState(
                tenant=row.tenant,
                uid=row.session_uid,
                now_us=self._now_us(row, found),
                head=read_head(row),
            )
            if self.known is not None:
                state.version, self.own_version = row.version, row.own_version
                self.known.compare(uid, row.version)
                self.known.clock.hear(row.now_us)
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
            state = self.states.get((row.tenant, row.session_uid))
            if state is not None:
                yield state, row

    def _now_us(self, head: Any, found: _Found) -> int:
        # Replicas agree on the database's clock; a SQLite store has one process.
        if self.sqlite:
            return self.clock()
        return int(head.now_us if self.skip_locked else found.now.rows[0].now_us)

    def _follow(self, trip: Trip, commands: Sequence[Command]) -> None:
        """Load the turns that claims and heads name, which had to be read first."""
        turns: set[tuple[str, str, str]] = set()
        waiting: set[Uid] = set()
        for uid, state in self.states.items():
            turns.update((*uid, c.turn_id) for c in state.claims.values() if c.turn_id is not None)
        for command in commands:
            locked = self.state_of(command)
            if locked is None:
                continue
            turn_id = locked.head.unfinished_turn_id
            if turn_id is not None and _needs_unfinished_turn(command):
                turns.add((locked.tenant, locked.uid, turn_id))
            if isinstance(command, FinishTurn | StartNext) and locked.head.queued_turns > 0:
                waiting.add((locked.tenant, locked.uid))
        turns = {key for key in turns if key[2] not in self.states[key[:2]].turns}
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

    def state_of(self, command: Command) -> SessionState | None:
        """Return the command's session; None where it is not there, or is locked elsewhere."""
        uid = self.uid_of(command)
        return None if uid is None else self.states.get(uid)


def session_not_found(name: SessionName) -> SessionNotFound:
    """Return the error for a session that is not there, or is another incarnation."""
    return SessionNotFound.of_field("session_key", f"there is no session {name.session_key!r}")


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
            self.claims.add((*uid, int(_scope(command)), claim.request_id))
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


def _scope(command: Command) -> ClaimScope:
    return command.scope if isinstance(command, AppendDrafts) else ClaimScope.SEND_EVENT


def _needs_claim_alone(command: Command) -> TypeGuard[AppendDrafts | AcceptInput]:
    """Tell whether of its session the command needs no more than the head and its claim."""
    match command:
        case AppendDrafts():
            return not any(draft.given_id or draft.tool_call_id for draft in command.drafts)
        case AcceptInput():
            return True
        case _:
            return False


def _needs_unfinished_turn(command: Command) -> bool:
    match command:
        case FindInterrupted() | AnswerCalls() | AcceptInput(when_busy=WhenBusy.STEER):
            return True
        case _:
            return False
