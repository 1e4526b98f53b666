"""Fields of messages as bytes: a tag, the length where the field has one, and the value.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message

VARINT: Final = 0
LENGTH_DELIMITED: Final = 2
SEVEN_BITS: Final = 0x7F
"""What a byte of a varint holds; its highest bit says that another one follows."""
_KEPT_BELOW = 1 << 14


class _Varints(dict[int, bytes]):
    """Numbers from 0 as varints; those of up to two bytes are kept."""

    def __missing__(self, number: int) -> bytes:
        data = bytearray()
        rest = number
        while rest > SEVEN_BITS:
            data.append(rest & SEVEN_BITS | SEVEN_BITS + 1)
            rest >>= 7
        data.append(rest)
        made = bytes(data)
        if number < _KEPT_BELOW:
            self[number] = made
        return made


VARINTS = _Varints()


def make_tag(message: type[Message], field: str, kind: int) -> bytes:
    """Return what a field of the message begins with."""
    return VARINTS[message.DESCRIPTOR.fields_by_name[field].number << 3 | kind]


def encode_field(tag: bytes, value: bytes) -> bytes:
    """Return a length-delimited field."""
    return tag + VARINTS[len(value)] + value
