"""Pages of events on the wire, from rows as the store reads them: no object is made for an event.

An event's header is written field by field in the order of their numbers, as its message would be.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1 import event_pb2, event_service_pb2
from hansard_server.domain.clock import MICROSECONDS_PER_SECOND
from hansard_server.domain.records import EventRow, event_of_row
from hansard_server.servicers.wire_fields import (
    LENGTH_DELIMITED,
    SEVEN_BITS,
    VARINT,
    VARINTS,
    encode_field,
    make_tag,
)
from hansard_server.turns.payloads import encode_event

_TWO_BYTES = 1 << 14
_TWO_BYTES_BITS = _TWO_BYTES - 1


class _LowBytes(dict[int, bytes]):
    """The two lowest bytes of varints that have more."""

    def __missing__(self, bits: int) -> bytes:
        made = self[bits] = bytes((bits & SEVEN_BITS | 0x80, bits >> 7 | 0x80))
        return made


_LOW_BYTES = _LowBytes()


def encode_event_rows(rows: Sequence[EventRow], agent_key: str, session_key: str) -> bytes:
    """Return the page as a serialized ListEventsResponse, as yet without a token.

    Each event is what `encode_event` makes of it, byte for byte.
    """
    varints, low_bytes = VARINTS, _LOW_BYTES
    events, id_tag, created_at = _EVENTS, _ID, _CREATED_AT
    names = _text(_AGENT_KEY, agent_key) + _text(_SESSION_KEY, session_key) + _SEQUENCE
    pieces: list[bytes] = []
    # What one event has in common with the next is kept.
    turn_id, turn = None, b""
    # With a byte for the length of each, an id's and a time's.
    of_all = always = len(id_tag) + 1 + len(names) + len(created_at) + 1
    second, seconds, before_nanos = -1, b"", b""
    high_second, high_bytes = 0, b""
    for row in rows:
        sequence, id_, _, of_turn, created_at_us, hide_reason, deleted_at_us, _, _, data = row
        id_bytes = id_.encode()
        if (
            hide_reason
            or deleted_at_us is not None
            or sequence < 1
            or created_at_us < 0
            or not 0 < len(id_bytes) <= SEVEN_BITS
        ):
            event = encode_event(event_of_row(row), agent_key, session_key)
            pieces += (_EVENTS, varints[len(event)], event)
            continue
        if of_turn != turn_id:
            turn_id, turn = of_turn, _text(_TURN_ID, of_turn or "")
            always = of_all + len(turn)
        whole = created_at_us // MICROSECONDS_PER_SECOND
        if whole != second:
            second = whole
            high = whole >> 14
            if high != high_second:
                # It lasts for hours, and its varint is not kept.
                high_second, high_bytes = high, varints[high]
            if high:
                seconds = _SECONDS + low_bytes[whole & _TWO_BYTES_BITS] + high_bytes
            else:
                seconds = _SECONDS + varints[whole] if whole else b""
            before_nanos = seconds + _NANOS
        nanos = (created_at_us - whole * MICROSECONDS_PER_SECOND) * 1_000
        high = nanos >> 14
        if high >= _TWO_BYTES:
            low = low_bytes[nanos & _TWO_BYTES_BITS]
            time = before_nanos + low + low_bytes[high & _TWO_BYTES_BITS] + varints[high >> 14]
        elif high:
            time = before_nanos + low_bytes[nanos & _TWO_BYTES_BITS] + varints[high]
        else:
            time = before_nanos + varints[nanos] if nanos else seconds
        place = varints[sequence]
        size = always + len(id_bytes) + len(place) + len(time) + len(data)
        pieces += (
            events,
            varints[size],
            id_tag,
            varints[len(id_bytes)],
            id_bytes,
            names,
            place,
            turn,
            created_at,
            varints[len(time)],
            time,
            data,
        )
    return b"".join(pieces)


def encode_next_page_token(token: str) -> bytes:
    """Return what a page that has this token ends with."""
    return _text(_NEXT_PAGE_TOKEN, token)


def _text(tag: bytes, text: str) -> bytes:
    data = text.encode()
    return encode_field(tag, data) if data else b""


_EVENTS = make_tag(event_service_pb2.ListEventsResponse, "events", LENGTH_DELIMITED)
_NEXT_PAGE_TOKEN = make_tag(
    event_service_pb2.ListEventsResponse, "next_page_token", LENGTH_DELIMITED
)
_ID, _AGENT_KEY, _SESSION_KEY, _TURN_ID, _CREATED_AT = (
    make_tag(event_pb2.Event, name, LENGTH_DELIMITED)
    for name in ("id", "agent_key", "session_key", "turn_id", "created_at")
)
_SEQUENCE = make_tag(event_pb2.Event, "sequence", VARINT)
_SECONDS, _NANOS = (make_tag(Timestamp, name, VARINT) for name in ("seconds", "nanos"))
