"""What a followed turn or session tells beside its events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hansard.v1.event_pb2 import Event
from hansard.v1.turn_pb2 import Turn

Kind: TypeAlias = Literal["thinking", "agent_output"]
"""The payload that a text will be part of."""


@dataclass(frozen=True, slots=True)
class Delta:
    """More of a text that is being made.

    The deltas of one event, in the order in which they come, are its content, byte for byte; the
    event itself follows when it is on record.

    Attributes:
        event_id: the id that the finished event will have.
        kind: what it will be.
        offset: where the text belongs in the event's content, in UTF-8 bytes.
        text: the text.
    """

    event_id: str
    kind: Kind
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Void:
    """What was shown under this id will not be part of the record: drop it.

    It comes after a crash of the server, or when a model call had to be repeated.
    """

    event_id: str


@dataclass(frozen=True, slots=True)
class Queued:
    """The input waits for the turns before it; at position 1 it is the next to run."""

    position: int


@dataclass(frozen=True, slots=True)
class RequiresAction:
    """The turn waits for somebody: `turn.pending_calls` says for whom."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The turn has ended; `turn.status` says how."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All that was on record when the watch began has been told; what follows is new."""


@dataclass(frozen=True, slots=True)
class Changed:
    """An event that was on record before was hidden, shown again or deleted just now."""

    event: Event


TurnItem: TypeAlias = Event | Delta | Void | Queued | RequiresAction | TurnEnd
"""What `stream` yields."""
WatchItem: TypeAlias = Event | Delta | Void | CaughtUp | Changed | RequiresAction | TurnEnd
"""What `watch_all` yields."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An input that the session has taken.

    Attributes:
        turn_id: the turn that answers it.
        session_uid: the session's incarnation.
        sequence: the session's last sequence then: watch from here to miss nothing.
        position: how many turns are before it, the running one not counted, plus one; 0 when it
            runs.
        request_id: under which the same input can be sent again, and followed.
    """

    turn_id: str
    session_uid: str
    sequence: int
    position: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent answered.

    Attributes:
        text: the last `agent_output`, or the JSON of the last `structured_output`.
        turn: how the turn ended; in REQUIRES_ACTION it waits for somebody, and there is more to
            come.
    """

    text: str
    turn: Turn
