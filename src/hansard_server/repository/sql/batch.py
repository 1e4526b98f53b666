"""A batch of commands as one transaction, by a number of statements that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import field
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from hansard_server.domain.clock import Clock
from hansard_server.domain.values import dataclass
from hansard_server.failpoints import hit
from hansard_server.repository.api import Change
from hansard_server.repository.commands import (
    AcceptInput,
    AnswerCalls,
    AppendDrafts,
    AwaitCalls,
    CancelQueued,
    Command,
    ExpireCalls,
    FindInterrupted,
    FinishTurn,
    HandOn,
    LeaseLost,
    NamedCommand,
    RecordStep,
    StartNext,
    TakeTurn,
)
from hansard_server.repository.sql import batch_statements as statements
from hansard_server.repository.sql import decisions, pending
from hansard_server.repository.sql.alterations import hide_summarised
from hansard_server.repository.sql.batch_reads import BatchSessions, session_not_found
from hansard_server.repository.sql.batch_rows import (
    claim_row,
    head_update,
    turn_row,
    turn_update,
)
from hansard_server.repository.sql.blobs import share_blobs
from hansard_server.repository.sql.decisions import Named
from hansard_server.repository.sql.known import KnownSessions, Uid
from hansard_server.repository.sql.rows import artifact_values, event_values
from hansard_server.repository.sql.state import SessionState
from hansard_server.repository.sql.trips import BEGIN, COMMIT, Trip

_WRONG_SQLSTATES = frozenset({"22012", "23505"})
"""A session is not as it was assumed to be; a request_id or an event's id is there already."""

Outcome = object
"""What a command came to: its result, or the exception that it raised."""


class Skipped(Exception):  # noqa: N818 - not an error: the command is run again, alone
    """Somebody else holds the session's head; the command has to wait outside the batch."""


@dataclass(slots=True)
class Batch:
    """Runs commands on a connection, in a transaction that the caller begins and commits.

    Attributes:
        skip_locked: answer Skipped for sessions that are locked elsewhere, instead of waiting.
        known: for a batch that is the whole transaction, of commands that skip what is locked, on a
            connection in autocommit: the batch begins and commits, and it takes the sessions for
            what they were, if they are known.
        changes: after `run`: what the commit will have done, a Change for each session.
        ending: the batch has asked for its own commit.
    """

    connection: Connection
    clock: Clock
    skip_locked: bool = False
    known: KnownSessions | None = None
    changes: list[Change] = field(default_factory=list)
    ending: bool = False
    _altered: dict[Uid, tuple[tuple[int, str], ...]] = field(default_factory=dict)

    def run(self, commands: Sequence[Command]) -> list[Outcome]:
        """Return an outcome for each command, in order. Database errors are raised."""
        trip = Trip(self.connection)
        if self.known is not None:
            assumed_outcomes = self._run_assumed(trip, self.known, commands)
            if assumed_outcomes is not None:
                return assumed_outcomes
            trip.say(BEGIN)
        sqlite = self.connection.dialect.name == "sqlite"
        sessions = BatchSessions(sqlite, self.clock, self.skip_locked, self.known)
        sessions.read(trip, commands)
        hit("batch.locked")
        outcomes = [self._decide(sessions, command) for command in commands]
        hit("batch.decided")
        self._write(trip, sessions.states.values())
        if self.known is None:
            trip.make()
            hit("batch.written")
        else:
            # What is left of the writes is not sent yet: it goes with the commit.
            hit("batch.written")
            trip.say(COMMIT)
            self.ending = True
            trip.make()
            self.known.keep(sessions.states.values(), sessions.own_version)
        self._note_changes(sessions.states.values())
        return outcomes

    def _run_assumed(
        self, trip: Trip, known: KnownSessions, commands: Sequence[Command]
    ) -> list[Outcome] | None:
        """Do what `run` does by one trip, in which the database looks whether all is as assumed.

        Return None where it is not, or not all is known, or a command would be refused: perhaps
        wrongly. Nothing has happened then.
        """
        sessions = known.assume(commands)
        if sessions is None:
            return None
        answer = sessions.ask(trip)
        outcomes = [
            _outcome_of(sessions.state_of(command), sessions.named_of(command), command)
            for command in commands
        ]
        states = sessions.states.values()
        refused = any(isinstance(outcome, Exception) for outcome in outcomes)
        # Files and summaries are written by more than one trip.
        if refused or any(state.hidden or state.new_artifacts for state in states):
            trip.forget()
            return None
        hit("batch.decided")
        self._write(trip, states)
        hit("batch.written")
        self.ending = True
        try:
            trip.commit()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _WRONG_SQLSTATES:
                raise
            self.ending = False
            if known.was_wrong():
                # psycopg does not know of all that it has prepared, where what it says after a
                # statement that failed is not run. With this it forgets all.
                self.connection.exec_driver_sql("DEALLOCATE ALL")
            return None
        known.was_right()
        [held] = answer.rows
        known.clock.hear(held.now_us)
        known.keep(states, held.own_version)
        self._note_changes(states)
        return outcomes

    def _note_changes(self, states: Collection[SessionState]) -> None:
        self.changes = [
            Change(
                tenant=state.tenant,
                session_uid=state.uid,
                events=tuple(state.new_events),
                altered=self._altered.get((state.tenant, state.uid), ()),
                turns=tuple(state.turns[id_].record for id_ in state.changed_turns),
            )
            for state in states
            if state.head_changed or state.changed_turns
        ]

    # Deciding -------------------------------------------------------------------------------------

    def _decide(self, sessions: BatchSessions, command: Command) -> Outcome:
        named: Named | None = None
        if isinstance(command, NamedCommand):
            found = sessions.named[command.session]
            if isinstance(found, Exception):
                return found
            named = found
        state = sessions.state_of(command)
        if state is None:
            # It may not be there rather than locked: alone, without skipping, that shows.
            if self.skip_locked and not sessions.is_gone(command):
                return Skipped()
            if isinstance(command, NamedCommand):
                return session_not_found(command.session)
            return None if isinstance(command, StartNext | ExpireCalls) else LeaseLost()
        return _outcome_of(state, named, command)

    # Writing --------------------------------------------------------------------------------------

    def _write(self, trip: Trip, states: Collection[SessionState]) -> None:
        """Have the trip write what is new; part of it may have to be written at once."""
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

    def _hide(self, state: SessionState) -> None:
        """Hide what compactions have summarised: of these events those that are still visible."""
        first = state.head.alteration_count + 1
        numbered = hide_summarised(self.connection, (state.tenant, state.uid), state.hidden, first)
        state.head.alteration_count += len(numbered)
        self._altered[state.tenant, state.uid] = numbered


def _outcome_of(state: SessionState, named: Named | None, command: Command) -> Outcome:
    try:
        return _apply(state, named, command)
    except Exception as error:  # noqa: BLE001 - the outcome of one command, raised by its waiter
        return error


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
