"""What this process knows of sessions: as it has left them itself.

A batch that begins with that, and that the database refuses where somebody else has been there
since, is one round trip: nothing has to be read first.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import field, replace
from typing import TypeVar

from hansard_server.domain.records import TurnStatus
from hansard_server.domain.values import dataclass
from hansard_server.repository.commands import (
    AcceptInput,
    AppendDrafts,
    AwaitCalls,
    Command,
    FinishTurn,
    HandOn,
    NamedCommand,
    OwnedCommand,
    RecordStep,
    SessionName,
    WhenBusy,
)
from hansard_server.repository.sql import batch_statements as statements
from hansard_server.repository.sql.decisions import Named
from hansard_server.repository.sql.keysets import encode_keys
from hansard_server.repository.sql.state import Head, HeldTurn, SessionState
from hansard_server.repository.sql.trips import Answer, Trip

Uid = tuple[str, str]
"""A session: (tenant, uid)."""
_Key = tuple[str, str, str]
"""A session as it is named: (tenant, agent key, session key)."""

K = TypeVar("K")
V = TypeVar("V")

_TRUSTED = 2
"""So often in a row a session was as it is known, before a batch begins with that again."""
_WRONG_IN_A_ROW = 3
"""After so many batches that were wrong, one after the other, some do not begin so: it may be that
all will be, since the database is far away, or others write wherever this process does."""
_PAUSE_MAX_BATCHES = 255
_WRONG_KEPT = 100
"""What a refused batch leaves at the driver, and in the database, is cleared after so many."""
_TURNS_MAX_BYTES = 32 << 20
"""Turns are kept as long as their inputs together have no more bytes."""
_TOLERANCE_US = 250_000
"""The database's time is taken for what it was, plus what has passed here. It may be so far off."""


@dataclass(slots=True)
class _Session:
    """A session as this process has left it, or found it.

    Attributes:
        version: that of its head's row.
        trust: how often in a row nobody else had been there, `_TRUSTED` at most.
    """

    head: Head
    version: str
    trust: int = _TRUSTED


class KnownSessions:
    """The sessions that were written to last. For one thread."""

    def __init__(self, max_names: int = 50_000, max_sessions: int = 10_000) -> None:
        """Know nothing yet; keep so many names, and what so many sessions are like, at most."""
        self.clock = DatabaseClock()
        self._names: dict[_Key, Named] = {}
        self._sessions: dict[Uid, _Session] = {}
        self._turns = _RunningTurns()
        self._wrong = 0
        self._wrong_in_a_row = 0
        self._pause_batches = 0
        self._max_names = max_names
        self._max_sessions = max_sessions

    def find_uid(self, name: SessionName) -> str | None:
        """Return the uid of what the name probably means."""
        if name.uid is not None:
            return name.uid
        named = self._names.get(name_key(name))
        return None if named is None else named.uid

    def learn_name(self, name: SessionName, named: Named) -> None:
        """Keep what the name means."""
        _put_last(self._names, name_key(name), named, self._max_names)

    def assume(self, commands: Sequence[Command]) -> AssumedSessions | None:
        """Return the commands' sessions, if what they need of them is known, and was right so far.

        That no request_id and no id that callers gave is there yet is assumed, too.
        """
        if self._pause_batches > 0:
            self._pause_batches -= 1
            return None
        now_us = self.clock.now_us()
        if now_us is None:
            return None
        assumed = AssumedSessions(now_us)
        for command in commands:
            uid = self._uid_of(command, assumed)
            session = None if uid is None else self._sessions.get(uid)
            if uid is None or session is None or session.trust < _TRUSTED:
                return None
            turn = self._turns.find(uid, session.head.unfinished_turn_id)
            if not _suffices(session.head, turn, command):
                return None
            assumed.add(uid, session.head, session.version)
            if turn is not None and _needs_turn(session.head, command):
                assumed.states[uid].turns[turn.record.id] = turn
        return assumed

    def was_right(self) -> None:
        """Take note of a batch that has begun so, and was not refused."""
        self._wrong_in_a_row = 0

    def was_wrong(self) -> bool:
        """Take note of one that was refused; return whether it is time to clear up."""
        self._wrong += 1
        self._wrong_in_a_row += 1
        more = self._wrong_in_a_row - _WRONG_IN_A_ROW
        if more > 0:
            self._pause_batches = min((1 << min(more, 16)) - 1, _PAUSE_MAX_BATCHES)
        return self._wrong % _WRONG_KEPT == 0

    def compare(self, uid: Uid, version: str) -> None:
        """Take note of whether a session, as it was read, is as it is known."""
        session = self._sessions.get(uid)
        if session is not None:
            session.trust = min(session.trust + 1, _TRUSTED) if session.version == version else 0

    def keep(self, states: Collection[SessionState], own_version: str) -> None:
        """Keep what a transaction with this version has left, and the states are not used after."""
        for state in states:
            uid = (state.tenant, state.uid)
            before = self._sessions.get(uid)
            session = _Session(
                state.head,
                own_version if state.head_changed else state.version,
                _TRUSTED if before is None else before.trust,
            )
            _put_last(self._sessions, uid, session, self._max_sessions)
            self._turns.keep(uid, state, own_version)

    def _uid_of(self, command: Command, assumed: AssumedSessions) -> Uid | None:
        if isinstance(command, OwnedCommand):
            return (command.turn.tenant, command.turn.session_uid)
        if not isinstance(command, NamedCommand):
            return None
        name = command.session
        named = self._names.get(name_key(name))
        if named is None or name.uid not in {None, named.uid}:
            return None
        assumed.named[name] = named
        return (named.tenant, named.uid)


@dataclass(slots=True)
class AssumedSessions:
    """The sessions of a batch as they are assumed to be.

    Attributes:
        now_us: what the database's time is taken for.
        states: as if they were read and locked.
        named: what the commands' names mean.
    """

    now_us: int
    states: dict[Uid, SessionState] = field(default_factory=dict)
    named: dict[SessionName, Named] = field(default_factory=dict)

    def add(self, uid: Uid, head: Head, version: str) -> None:
        """Add a session, if it is not there yet."""
        if uid not in self.states:
            self.states[uid] = SessionState(*uid, self.now_us, replace(head), version)

    def named_of(self, command: Command) -> Named | None:
        """Return what the command's name means, if it has one."""
        return self.named[command.session] if isinstance(command, NamedCommand) else None

    def state_of(self, command: Command) -> SessionState:
        """Return the command's session."""
        if isinstance(command, NamedCommand):
            named = self.named[command.session]
            return self.states[named.tenant, named.uid]
        assert isinstance(command, OwnedCommand)  # noqa: S101 - for the type checker: see `assume`
        return self.states[command.turn.tenant, command.turn.session_uid]

    def ask(self, trip: Trip) -> Answer:
        """Have the trip lock the sessions, and fail unless all are as they are assumed to be.

        To be called before anything is decided. The answer's row has the database's time, and the
        transaction's version.
        """
        names = {(n.tenant, n.uid): (s.agent_key, s.session_key) for s, n in self.named.items()}
        heads = [
            (*uid, state.version, state.head.last_active_at_us, *names.get(uid, ("", "")))
            for uid, state in self.states.items()
        ]
        turns = [
            (*uid, turn.record.id, turn.version)
            for uid, state in self.states.items()
            for turn in state.turns.values()
        ]
        answer = trip.ask(
            statements.HEADS_AS_KNOWN,
            {
                **encode_keys(heads),
                "b_count": len(heads),
                "b_now_us": self.now_us,
                "b_tolerance_us": _TOLERANCE_US,
            },
        )
        if turns:
            trip.ask(statements.TURNS_AS_KNOWN, {**encode_keys(turns), "b_count": len(turns)})
        return answer


class _RunningTurns:
    """The turns that run in somebody's hands, as this process has left them; the newest ones."""

    def __init__(self) -> None:
        """Keep none yet."""
        self._turns: dict[Uid, HeldTurn] = {}
        self._bytes = 0

    def find(self, uid: Uid, turn_id: str | None) -> HeldTurn | None:
        """Return a session's unfinished turn, if it is kept."""
        held = self._turns.get(uid)
        return held if held is not None and held.record.id == turn_id else None

    def keep(self, uid: Uid, state: SessionState, own_version: str) -> None:
        """Keep the session's turn if the transaction has changed it, and forget what has ended."""
        turn_id = state.head.unfinished_turn_id
        before = self._turns.pop(uid, None)
        if before is not None:
            self._bytes -= len(before.record.input)
        held = state.turns.get(turn_id or "", before)
        if held is None or held.record.id != turn_id:
            return
        if turn_id in state.changed_turns:
            held = replace(held, version=own_version)
        elif before is None:
            # It is somebody else's.
            return
        if held.record.status is not TurnStatus.RUNNING or held.lease_owner is None:
            return
        self._turns[uid] = held
        self._bytes += len(held.record.input)
        while self._bytes > _TURNS_MAX_BYTES:
            self._bytes -= len(self._turns.pop(next(iter(self._turns))).record.input)


class DatabaseClock:
    """The database's time, as far as it is known without asking."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._ahead_us: int | None = None
        """The database's time, less that of this process."""

    def now_us(self) -> int | None:
        """Return the database's time; None as long as nothing was heard of it."""
        return None if self._ahead_us is None else _process_us() + self._ahead_us

    def hear(self, now_us: int) -> None:
        """Take note of the time that the database has just told.

        It has looked some time before, so that the greatest difference is the best one, and what
        this process takes for the time is not ahead.
        """
        ahead_us = now_us - _process_us()
        known_us = self._ahead_us
        if known_us is None or ahead_us > known_us or ahead_us < known_us - _TOLERANCE_US // 2:
            self._ahead_us = ahead_us
        else:
            # The clocks may drift.
            self._ahead_us = known_us + (ahead_us - known_us) // 16


def name_key(name: SessionName) -> tuple[str, str, str]:
    """Return (tenant, agent key, session key)."""
    return (name.tenant, name.agent_key, name.session_key)


def _process_us() -> int:
    # Nobody sets it.
    return time.monotonic_ns() // 1_000


def _put_last(kept: dict[K, V], key: K, value: V, most: int) -> None:
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]


def _suffices(head: Head, turn: HeldTurn | None, command: Command) -> bool:
    """Tell whether the command needs no more of its session than head and running turn.

    A turn that waits, and what is stored of a caller's tool call, is read first.
    """
    match command:
        case AppendDrafts():
            return not any(draft.tool_call_id is not None for draft in command.drafts)
        case AcceptInput():
            return turn is not None or not _needs_turn(head, command)
        case RecordStep() | FinishTurn() | AwaitCalls() | HandOn():
            starts = isinstance(command, FinishTurn) and head.queued_turns > 0
            return turn is not None and turn.record.id == command.turn.turn_id and not starts
        case _:
            return False


def _needs_turn(head: Head, command: Command) -> bool:
    if isinstance(command, AcceptInput):
        return command.when_busy is WhenBusy.STEER and head.unfinished_turn_id is not None
    return isinstance(command, OwnedCommand)
