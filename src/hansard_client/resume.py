"""What of a broken and repeated stream is new. No input and no output: answers in, items out.

A stream that is opened again tells its turn from the start, or its session from the last event, and
the open text from its first byte. Here that becomes one telling without a repeat: every event once,
in order; every text's bytes once, `Void` where a text that was shown will not be on record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from hansard.v1 import event_service_pb2 as wire
from hansard.v1.event_pb2 import Event
from hansard.v1.turn_pb2 import TURN_STATUS_QUEUED, TURN_STATUS_REQUIRES_ACTION, Turn
from hansard.v1.turn_pb2 import TURN_STATUS_RUNNING as RUNNING
from hansard_client.items import (
    CaughtUp,
    Changed,
    Delta,
    Kind,
    Queued,
    RequiresAction,
    TurnEnd,
    TurnItem,
    Void,
    WatchItem,
)

_REMEMBERED = 64
"""So many ids are kept to know late news by; in a session one turn runs at a time."""


class _Texts:
    """How much of the open text has been told; at most one is open at a time."""

    def __init__(self) -> None:
        self.turn_id = ""
        self._event_id = ""
        self._told_bytes = 0
        self._stored: deque[str] = deque(maxlen=_REMEMBERED)

    def show(self, delta: wire.Delta, turn_id: str) -> Iterator[Delta | Void]:
        """Yield what is new of the text."""
        if delta.event_id not in self._stored:
            thought = delta.kind == wire.DELTA_KIND_THINKING
            kind: Kind = "thinking" if thought else "agent_output"
            yield from self._tell(
                delta.event_id, kind, delta.offset, delta.text.encode(), turn_id=turn_id
            )

    def finish(self, event: Event) -> Iterator[Delta | Void]:
        """Yield what has not been told of the text of an event that is on record."""
        kind = event.WhichOneof("payload")
        if kind not in {"thinking", "agent_output"}:
            return
        content: str = getattr(event, kind).content
        yield from self._tell(event.id, kind, 0, content.encode(), turn_id=event.turn_id)
        self._stored.append(event.id)
        self._event_id, self._told_bytes = "", 0

    def void(self, event_id: str = "") -> Iterator[Void]:
        """Yield that the open text, if it is this one, will not be on record."""
        if event_id not in {"", self._event_id}:
            return
        if self._told_bytes:
            yield Void(self._event_id)
        self._event_id, self._told_bytes = "", 0

    def _tell(
        self, event_id: str, kind: Kind, offset: int, data: bytes, *, turn_id: str
    ) -> Iterator[Delta | Void]:
        if self._event_id != event_id:
            yield from self.void()
            self._event_id, self.turn_id = event_id, turn_id
        if offset > self._told_bytes:
            # Something is missing before it; the stored event will bring both.
            return
        new = data[self._told_bytes - offset :]
        if new:
            start, self._told_bytes = self._told_bytes, self._told_bytes + len(new)
            yield Delta(event_id, kind, start, new.decode())


class TurnTelling:
    """One turn, as its streams tell it, from its start to its end.

    Attributes:
        turn_id: the turn; empty until something came.
        session_uid: the session's incarnation; empty until something came.
        sequence: the last sequence of the session that the streams spoke of.
        turn: how the turn ended, or that it waits; None until then.
        position: how many turns were before it when it was queued; 0: it never was.
    """

    def __init__(self, *, deltas: bool) -> None:
        """Tell the texts as deltas too, if wanted."""
        self.turn_id = ""
        self.session_uid = ""
        self.sequence = 0
        self.turn: Turn | None = None
        self.position = 0
        self._deltas = deltas
        self._told_sequence = 0
        self._texts = _Texts()

    def take(self, answer: wire.SendEventResponse) -> Iterator[TurnItem]:
        """Yield what is new in an answer of SendEvent."""
        self.turn_id = self.turn_id or answer.turn_id
        self.session_uid = self.session_uid or answer.session_uid
        self.sequence = max(self.sequence, answer.sequence)
        match answer.WhichOneof("item"):
            case "event":
                yield from self._event(answer.event)
            case "delta" if self._deltas:
                yield from self._texts.show(answer.delta, answer.turn_id)
            case "void":
                yield from self._texts.void(answer.void.event_id)
            case "queued" if not self.position and not self._told_sequence:
                self.position = answer.queued.position
                yield Queued(answer.queued.position)
            case "requires_action":
                self.turn = answer.requires_action.turn
                yield from self._texts.void()
                yield RequiresAction(self.turn)
            case "turn_end":
                self.turn = answer.turn_end.turn
                yield from self._texts.void()
                yield TurnEnd(self.turn)

    def _event(self, event: Event) -> Iterator[TurnItem]:
        if event.sequence <= self._told_sequence:
            return
        self._told_sequence = event.sequence
        if self._deltas:
            yield from self._texts.finish(event)
        yield event


class SessionTelling:
    """One session, as its watches tell it, from a sequence on.

    Attributes:
        sequence: everything up to here has been told: where the next stream goes on.
        session_uid: the session's incarnation; empty until something came.
        turn_id: the turn that wrote the last event that a turn wrote.
    """

    def __init__(self, *, after_sequence: int, deltas: bool) -> None:
        """Tell what comes after the sequence; texts as deltas and the ends of turns, if wanted."""
        self.sequence = after_sequence
        self.session_uid = ""
        self.turn_id = ""
        self._deltas = deltas
        self._texts = _Texts()
        self._caught_up = False
        self._unended: dict[str, None] = {}
        self._stops_told: deque[tuple[str, int, int]] = deque(maxlen=_REMEMBERED)
        self._ahead: Turn | None = None

    def take(self, answer: wire.WatchEventsResponse) -> Iterator[WatchItem]:
        """Yield what is new in an answer of WatchEvents."""
        self.session_uid = self.session_uid or answer.session_uid
        match answer.WhichOneof("item"):
            case "event":
                yield from self._event(answer.event)
            case "delta" if self._deltas:
                yield from self._texts.show(answer.delta, self.turn_id)
            case "void":
                yield from self._texts.void(answer.void.event_id)
            case "changed" if answer.changed.event.sequence <= self.sequence:
                yield Changed(answer.changed.event)
            case "turn_end":
                yield from self.stopped(answer.turn_end.turn)
            case "caught_up" if not self._caught_up:
                self._caught_up = True
                # Of the turns before only the last one can have an end that is still to come.
                self._unended = dict.fromkeys(list(self._unended)[-1:])
                yield CaughtUp()
        # What comes again after a break has its place in `sequence` as well.
        self.sequence = max(self.sequence, answer.sequence)

    def unheard(self) -> tuple[str, ...]:
        """Return the turns whose end may have come while no stream was open, the first one first.

        Ask for them when a stream that was opened again has caught up, and hand each to `stopped`.
        """
        return tuple(self._unended) if self._deltas else ()

    def stopped(self, turn: Turn) -> Iterator[Void | RequiresAction | TurnEnd]:
        """Yield that a turn has ended or waits, unless it does not or that has been told.

        When events of it are still to come, that is told after them.
        """
        if turn.status in {TURN_STATUS_QUEUED, RUNNING}:
            return
        if turn.last_sequence > self.sequence:
            # It was asked for, and the stream has not come so far.
            self._ahead = turn
            return
        waits = turn.status == TURN_STATUS_REQUIRES_ACTION
        if not waits:
            self._unended.pop(turn.id, None)
        stop = (turn.id, turn.status, turn.last_sequence)
        if stop in self._stops_told:
            return
        self._stops_told.append(stop)
        # The next turn may have begun to speak before the end of this one is told.
        if self._texts.turn_id in {"", turn.id}:
            yield from self._texts.void()
        yield RequiresAction(turn) if waits else TurnEnd(turn)

    def _event(self, event: Event) -> Iterator[WatchItem]:
        if event.sequence <= self.sequence:
            return
        if event.turn_id:
            self.turn_id = event.turn_id
            self._note(event.turn_id)
        self.sequence = event.sequence
        if self._deltas:
            yield from self._texts.finish(event)
        yield event
        if self._ahead is not None and self._ahead.last_sequence <= event.sequence:
            ahead, self._ahead = self._ahead, None
            yield from self.stopped(ahead)

    def _note(self, turn_id: str) -> None:
        if not any(
            turn_id == told and status != TURN_STATUS_REQUIRES_ACTION
            for told, status, _ in self._stops_told
        ):
            self._unended[turn_id] = None
        while len(self._unended) > _REMEMBERED:
            del self._unended[next(iter(self._unended))]
