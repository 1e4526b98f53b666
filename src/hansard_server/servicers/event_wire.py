"""Items of streams as bytes; stored payloads go out as they were stored.

Serialized messages concatenate, and a field of a message is its tag, its length and its bytes:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from google.protobuf.message import Message

from hansard.v1 import event_service_pb2
from hansard_server.agents.api import TextKind
from hansard_server.domain.records import TurnStatus
from hansard_server.repository.commands import Accepted
from hansard_server.servicers.convert import to_turn
from hansard_server.servicers.stalls import current_place
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
_LENGTH_DELIMITED = 2
_VARINT_BITS = 7


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
            return head.SerializeToString() + _field(_SEND_EVENT, event)
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
        return head.SerializeToString() + _field(_WATCH_EVENT, event)


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


def _tag(message: type[Message], field: str) -> bytes:
    number = message.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | _LENGTH_DELIMITED)


def _field(tag: bytes, value: bytes) -> bytes:
    return tag + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    data = bytearray()
    while number >= 1 << _VARINT_BITS:
        data.append(number & 0x7F | 0x80)
        number >>= _VARINT_BITS
    data.append(number)
    return bytes(data)


_SEND_EVENT = _tag(_Send, "event")
_WATCH_EVENT = _tag(_Watch, "event")
