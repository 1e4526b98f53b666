"""Items of streams as bytes; stored payloads go out as they were stored.

Serialized messages concatenate, so that a message and one more field of it are that message.
"""

from __future__ import annotations

from hansard.v1 import event_service_pb2
from hansard_server.agents.api import TextKind
from hansard_server.domain.records import TurnStatus
from hansard_server.repository.commands import Accepted
from hansard_server.servicers.convert import to_turn
from hansard_server.servicers.stalls import current_place
from hansard_server.servicers.wire_fields import LENGTH_DELIMITED, encode_field, make_tag
from hansard_server.turns.feeds import StoredEvent
from hansard_server.turns.payloads import encode_event
from hansard_server.turns.readers import (
    CaughtUp,
    EventAltered,
    InputQueued,
    Item,
    TextShown,
    TextVoided,
    TurnStopped,
)

_Send = event_service_pb2.SendEventResponse
_Watch = event_service_pb2.WatchEventsResponse
_KINDS = {
    TextKind.THINKING: event_service_pb2.DELTA_KIND_THINKING,
    TextKind.OUTPUT: event_service_pb2.DELTA_KIND_AGENT_OUTPUT,
}


class SendStream:
    """The messages of one SendEvent stream."""

    def __init__(self, agent_key: str, session_key: str) -> None:
        """Begin a stream of the session."""
        self._agent_key = agent_key
        self._session_key = session_key
        self._sequence = 0
        self._place = current_place()
        self._first = True

    def encode(self, accepted: Accepted, item: Item) -> bytes:
        """Return the item as a serialized SendEventResponse."""
        if isinstance(item, StoredEvent):
            self._sequence = item.event.sequence
        elif self._sequence == 0:
            self._sequence = accepted.last_sequence
        self._place.session_uid = accepted.turn.session_uid
        self._place.sequence = self._sequence
        head = _Send(turn_id=accepted.turn.id, sequence=self._sequence)
        if self._first:
            head.session_uid = accepted.turn.session_uid
            self._first = False
        if isinstance(item, StoredEvent):
            event = encode_event(item.event, self._agent_key, self._session_key)
            return head.SerializeToString() + encode_field(_SEND_EVENT, event)
        _set_item(head, item, self._agent_key, self._session_key)
        return head.SerializeToString()


class WatchStream:
    """The messages of one WatchEvents stream."""

    def __init__(self, agent_key: str, session_key: str, after_sequence: int) -> None:
        """Begin a stream of the session after a sequence."""
        self._agent_key = agent_key
        self._session_key = session_key
        self._sequence = after_sequence
        self._place = current_place()
        self._place.sequence = self._place.taken = after_sequence
        self._first = True

    def encode(self, session_uid: str, item: Item) -> bytes:
        """Return the item as a serialized WatchEventsResponse."""
        if isinstance(item, StoredEvent):
            self._sequence = self._place.sequence = item.event.sequence
            if not self._first:
                # The same for all who watch the session.
                if item.encoded is None:
                    item.encoded = self._encode_event(_Watch(sequence=self._sequence), item)
                return item.encoded
        head = _Watch(sequence=self._sequence)
        if self._first:
            head.session_uid = self._place.session_uid = session_uid
            self._first = False
        if isinstance(item, StoredEvent):
            return self._encode_event(head, item)
        if isinstance(item, EventAltered):
            event = encode_event(item.event, self._agent_key, self._session_key)
            head.changed.event.MergeFromString(event)
        elif isinstance(item, CaughtUp):
            head.caught_up.SetInParent()
        else:
            _set_item(head, item, self._agent_key, self._session_key)
        return head.SerializeToString()

    def _encode_event(self, head: _Watch, item: StoredEvent) -> bytes:
        event = encode_event(item.event, self._agent_key, self._session_key)
        return head.SerializeToString() + encode_field(_WATCH_EVENT, event)


def _set_item(head: _Send | _Watch, item: Item, agent_key: str, session_key: str) -> None:
    match item:
        case TextShown():
            head.delta.event_id = item.event_id
            head.delta.kind = _KINDS[item.kind]
            head.delta.offset = item.offset
            head.delta.text = item.text
        case TextVoided():
            getattr(head, "void").event_id = item.event_id  # noqa: B009 - `void` to readers of other languages
        case TurnStopped() if isinstance(head, _Send) and (
            item.turn.status is TurnStatus.REQUIRES_ACTION
        ):
            head.requires_action.turn.CopyFrom(to_turn(item.turn, agent_key, session_key))
        case TurnStopped():
            head.turn_end.turn.CopyFrom(to_turn(item.turn, agent_key, session_key))
        case InputQueued() if isinstance(head, _Send):
            head.queued.position = item.position
        case _:
            msg = f"{type(item).__name__} has no place in {type(head).__name__}"
            raise TypeError(msg)


_SEND_EVENT = make_tag(_Send, "event", LENGTH_DELIMITED)
_WATCH_EVENT = make_tag(_Watch, "event", LENGTH_DELIMITED)
