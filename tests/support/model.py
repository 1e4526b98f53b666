"""A model of a session's record in dicts and lists: what the store must do, said most plainly.

State machines run it beside the real thing and compare every reply. It knows nothing of SQL, time,
leases or streams; it follows the contract, and the order of checks in `repository.commands`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hansard_server.domain.records import EventType, TurnStatus

UNFINISHED = (TurnStatus.RUNNING, TurnStatus.REQUIRES_ACTION)
Fingerprint = Any
"""What two equal requests have in common; only compared."""


class Refused(Exception):  # noqa: N818 - a reply like others
    """The call is refused, for a reason of the contract."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True, eq=False)
class ModelEvent:
    """An event. `id` is empty until the real thing has given one; `call` pairs input and output."""

    kind: EventType
    payload: Any
    id: str = ""
    call: Any = None
    turn: ModelTurn | None = None
    sequence: int = 0
    hidden: bool = False
    deleted: bool = False
    seen: Any = None
    """The event as it was first read; it must never read otherwise."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A call that somebody is asked about: for an APPROVAL or an OUTPUT; `late`: no more."""

    kind: str
    late: bool = False


@dataclass(slots=True, eq=False)
class ModelTurn:
    """A turn; `error` is the reason of a failure."""

    number: int
    input: ModelEvent
    status: TurnStatus = TurnStatus.QUEUED
    id: str = ""
    events: list[ModelEvent] = field(default_factory=list)
    usage: tuple[int, int, int] = (0, 0, 0)
    error: str = ""
    attempt: int = 0
    awaited: dict[Any, Awaited] = field(default_factory=dict)
    approved: set[Any] = field(default_factory=set)

    @property
    def open_calls(self) -> list[ModelEvent]:
        """The calls without an output, in order."""
        answered = {e.call for e in self.events if e.kind is EventType.TOOL_OUTPUT}
        inputs = [e for e in self.events if e.kind is EventType.TOOL_INPUT]
        return [event for event in inputs if event.call not in answered]


@dataclass(frozen=True, slots=True)
class Sent:
    """What an input came to: its turn, and the first event that is its own; None: it waits."""

    turn: ModelTurn
    first: ModelEvent | None
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class ModelClaim:
    """A request_id with what its call was about."""

    request_id: str
    fingerprint: Fingerprint


@dataclass(slots=True, eq=False)
class ModelSession:
    """The record of one session.

    `start` is called with a turn that has just begun to run; it may go on with it at once.
    """

    start: Callable[[ModelTurn], None]
    queue_max: int = 16
    events: list[ModelEvent] = field(default_factory=list)
    turns: list[ModelTurn] = field(default_factory=list)
    claims: dict[tuple[str, str], tuple[Fingerprint, Any]] = field(default_factory=dict)
    enabled: bool = True

    # What there is --------------------------------------------------------------------------------

    @property
    def running(self) -> ModelTurn | None:
        """The turn that is unfinished."""
        return next((turn for turn in self.turns if turn.status in UNFINISHED), None)

    @property
    def waiting(self) -> list[ModelTurn]:
        """The turns that wait, the next one first."""
        return [turn for turn in self.turns if turn.status is TurnStatus.QUEUED]

    @property
    def busy(self) -> bool:
        """Whether a turn is unfinished or waits."""
        return self.running is not None or bool(self.waiting)

    @property
    def usage(self) -> tuple[int, int, int]:
        """What all turns have used."""
        used = [turn.usage for turn in self.turns]
        return (sum(u[0] for u in used), sum(u[1] for u in used), sum(u[2] for u in used))

    def find(self, event_id: str) -> ModelEvent:
        """Return the event of this id."""
        for event in self.events:
            if event_id and event.id == event_id:
                return event
        raise Refused("EVENT_NOT_FOUND")

    def scan(
        self,
        *,
        descending: bool = False,
        types: Sequence[EventType] = (),
        after: int = 0,
        before: int = 0,
        turn_id: str = "",
        hidden_too: bool = False,
    ) -> list[ModelEvent]:
        """Return the events that a list with these conditions has."""
        found = [
            event
            for event in self.events
            if event.sequence > after
            and (not before or event.sequence < before)
            and (not types or event.kind in types)
            and (not turn_id or (event.turn is not None and event.turn.id == turn_id))
            and (hidden_too or not (event.hidden or event.deleted))
        ]
        return found[::-1] if descending else found

    # Inputs ---------------------------------------------------------------------------------------

    def accept(
        self,
        message: ModelEvent,
        *,
        when_busy: str = "QUEUE",
        claim: ModelClaim | None = None,
        expected: int | None = None,
        fault: str = "",
        enabled: str = "",
    ) -> Sent:
        """Take an input. `enabled` and `fault` are reasons to refuse it, found by the caller."""
        known = self._claimed("SEND", claim)
        if known is not None:
            turn, first = known
            return Sent(turn, first or _first(turn), claimed=True)
        self._check(enabled, fault)
        if self.busy:
            if when_busy == "REJECT" or expected is not None:
                raise Refused("SESSION_BUSY")
            if when_busy == "STEER" and self.running is not None:
                turn = self.running
                first = self._write(message, turn)
                self._claim("SEND", claim, (turn, first))
                return Sent(turn, first)
            # An interrupt makes room: the turn that waits longest starts.
            waiting = len(self.waiting) - (when_busy == "INTERRUPT")
            if waiting >= self.queue_max:
                raise Refused("QUEUE_FULL")
        self._check_sequence(expected)
        if when_busy == "INTERRUPT" and self.running is not None:
            self.interrupt(self.running, "another input came")
        turn = ModelTurn(len(self.turns) + 1, message)
        waits = self.busy
        self.turns.append(turn)
        self._claim("SEND", claim, (turn, None))
        if not waits:
            self._run(turn)
        return Sent(turn, _first(turn))

    def find_interrupted(
        self, turn_id: str = "", claim: ModelClaim | None = None
    ) -> Sent | ModelTurn | None:
        """Return what an interrupt means: what it has done before, the turn to end, or nothing."""
        known = self._claimed("SEND", claim)
        if known is not None:
            turn, first = known
            return Sent(turn, first or _first(turn), claimed=True)
        turn = self.running
        return turn if turn is not None and turn_id in {"", turn.id} else None

    def interrupt(
        self, turn: ModelTurn, reason: str, claim: ModelClaim | None = None
    ) -> ModelEvent:
        """End a running turn, saying so; return the event that does."""
        said = ModelEvent(EventType.SESSION_INTERRUPTED, reason)
        self._claim("SEND", claim, (turn, said))
        self.finish(turn, TurnStatus.INTERRUPTED, (said,))
        return said

    def cancel(self, turn_id: str) -> ModelTurn:
        """Take a waiting turn back, end a running one; return it."""
        turn = self.turn(turn_id)
        if turn.status is TurnStatus.QUEUED:
            turn.status = TurnStatus.INTERRUPTED
        elif turn.status in UNFINISHED:
            self.interrupt(turn, "the turn was cancelled")
        return turn

    def turn(self, turn_id: str) -> ModelTurn:
        """Return the turn of this id."""
        for turn in self.turns:
            if turn_id and turn.id == turn_id:
                return turn
        raise Refused("TURN_NOT_FOUND")

    # Turns ----------------------------------------------------------------------------------------

    def step(
        self,
        turn: ModelTurn,
        events: Sequence[ModelEvent] = (),
        usage: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """Write what a turn does."""
        for event in events:
            self._write(event, turn)
        turn.usage = tuple(a + b for a, b in zip(turn.usage, usage, strict=True))  # type: ignore[assignment]

    def wait(self, turn: ModelTurn, calls: dict[Any, Awaited]) -> None:
        """Have a running turn wait for somebody to answer these calls."""
        turn.status = TurnStatus.REQUIRES_ACTION
        turn.awaited = dict(calls)
        turn.approved -= calls.keys()

    def answer(
        self,
        answers: Sequence[tuple[Any, str]],
        *,
        claim: ModelClaim | None = None,
        expected: int | None = None,
    ) -> Sent:
        """Answer (call, OUTPUT, APPROVE or REJECT) what the waiting turn waits for.

        The first event of the answers is None when they are approvals alone.
        """
        known = self._claimed("SEND", claim)
        if known is not None:
            its, first = known
            return Sent(its, first, claimed=True)
        turn = self.running
        if turn is None or turn.status is not TurnStatus.REQUIRES_ACTION:
            raise Refused("TOOL_CALL_NOT_PENDING")
        for call, answer in answers:
            awaited = turn.awaited.get(call)
            if awaited is None or awaited.late:
                raise Refused("TOOL_CALL_NOT_PENDING")
            if answer not in {"REJECT", {"APPROVAL": "APPROVE", "OUTPUT": "OUTPUT"}[awaited.kind]}:
                raise Refused("INVALID_REQUEST")
        self._check_sequence(expected)
        closed = {call for call, answer in answers if answer != "APPROVE"}
        turn.approved |= {call for call, answer in answers if answer == "APPROVE"}
        before = len(turn.events)
        self._close(turn, closed)
        for call, _ in answers:
            del turn.awaited[call]
        self._go_on(turn)
        first = turn.events[before] if len(turn.events) > before else None
        self._claim("SEND", claim, (turn, first))
        return Sent(turn, first)

    def expire(self, turn: ModelTurn) -> ModelTurn | None:
        """Close what the turn has waited for too long; return it if it goes on."""
        late = {call for call, awaited in turn.awaited.items() if awaited.late}
        if turn.status is not TurnStatus.REQUIRES_ACTION or not late:
            return None
        self._close(turn, late)
        for call in late:
            del turn.awaited[call]
        self._go_on(turn)
        return None if turn.awaited else turn

    def _close(self, turn: ModelTurn, calls: set[Any]) -> None:
        for call in turn.open_calls:
            if call.call in calls:
                self._write(ModelEvent(EventType.TOOL_OUTPUT, None, call=call.call), turn)

    def _go_on(self, turn: ModelTurn) -> None:
        if not turn.awaited:
            turn.status, turn.attempt = TurnStatus.RUNNING, 1

    def finish(
        self,
        turn: ModelTurn,
        status: TurnStatus,
        events: Sequence[ModelEvent] = (),
        *,
        error: str = "",
        start_next: bool = True,
    ) -> None:
        """End a turn, closing its open calls, and start the one that waits longest."""
        self.step(turn, events)
        for call in turn.open_calls:
            self._write(ModelEvent(EventType.TOOL_OUTPUT, None, call=call.call), turn)
        turn.status, turn.error = status, error
        turn.awaited, turn.approved = {}, set()
        if start_next:
            self.start_next()

    def start_next(self) -> ModelTurn | None:
        """Start the turn that waits longest, if nothing runs."""
        if self.running is not None or not self.waiting:
            return None
        turn = self.waiting[0]
        self._run(turn)
        return turn

    # Appends and alterations ----------------------------------------------------------------------

    def append(
        self,
        drafts: Sequence[ModelEvent],
        *,
        scope: str = "APPEND",
        claim: ModelClaim | None = None,
        expected: int | None = None,
        while_busy: bool = False,
        fault: str = "",
        enabled: str = "",
    ) -> list[ModelEvent]:
        """Write a caller's events; return where each stands."""
        known = self._claimed(scope, claim)
        if known is not None:
            return list(known)
        self._check(enabled, fault)
        only_custom = all(draft.kind is EventType.CUSTOM for draft in drafts)
        if self.busy and not only_custom and not while_busy:
            raise Refused("SESSION_BUSY")
        self._check_sequence(expected)
        placed: list[ModelEvent] = []
        fresh: list[ModelEvent] = []
        for draft in drafts:
            same = [e for e in (*self.events, *fresh) if draft.id and e.id == draft.id]
            if same:
                (other,) = same
                if other.deleted or (other.kind, other.payload) != (draft.kind, draft.payload):
                    raise Refused("EVENT_ALREADY_EXISTS")
                placed.append(other)
                continue
            self._check_call(draft, fresh)
            fresh.append(draft)
            placed.append(draft)
        for draft in fresh:
            self._write(draft, None)
        self._claim(scope, claim, placed)
        return placed

    def alter(self, event_id: str, how: str) -> ModelEvent:
        """Hide, unhide or delete an event and the other half of its call; return it."""
        event = self.find(event_id)
        both = [e for e in self.events if e is event or (event.call and e.call == event.call)]
        if any(e.turn is not None and e.turn is self.running for e in both):
            raise Refused("SESSION_BUSY")
        for half in both:
            if how == "DELETE":
                half.deleted = True
            elif not half.deleted:
                half.hidden = how == "HIDE"
        return event

    # ----------------------------------------------------------------------------------------------

    def _write(self, event: ModelEvent, turn: ModelTurn | None) -> ModelEvent:
        event.sequence = len(self.events) + 1
        event.turn = turn
        self.events.append(event)
        if turn is not None:
            turn.events.append(event)
        # What belongs together is hidden together.
        event.hidden = any(e.hidden for e in self.events if event.call and e.call == event.call)
        return event

    def _run(self, turn: ModelTurn) -> None:
        turn.status = TurnStatus.RUNNING
        turn.attempt = 1
        self._write(turn.input, turn)
        self.start(turn)

    def _check_call(self, draft: ModelEvent, fresh: Sequence[ModelEvent]) -> None:
        if draft.call is None:
            return
        halves = [e for e in (*self.events, *fresh) if e.call == draft.call]
        if draft.kind is EventType.TOOL_INPUT and halves:
            raise Refused("EVENT_ALREADY_EXISTS")
        if draft.kind is EventType.TOOL_OUTPUT and (len(halves) != 1 or halves[0].deleted):
            raise Refused("TOOL_CALL_NOT_PENDING")

    def _check(self, *reasons: str) -> None:
        for reason in reasons:
            if reason:
                raise Refused(reason)

    def _check_sequence(self, expected: int | None) -> None:
        if expected is not None and expected != len(self.events):
            raise Refused("SEQUENCE_MISMATCH")

    def _claimed(self, scope: str, claim: ModelClaim | None) -> Any:
        if claim is None or (scope, claim.request_id) not in self.claims:
            return None
        fingerprint, made = self.claims[scope, claim.request_id]
        if fingerprint != claim.fingerprint:
            raise Refused("REQUEST_ID_REUSED")
        return made

    def _claim(self, scope: str, claim: ModelClaim | None, made: Any) -> None:
        if claim is not None:
            self.claims[scope, claim.request_id] = (claim.fingerprint, made)


def _first(turn: ModelTurn) -> ModelEvent | None:
    return turn.events[0] if turn.events else None
