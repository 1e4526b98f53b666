"""Sizes of free-form objects, taken from the bytes of a request: to parse a large one costs more
than to refuse it, a second for each 2 MiB of small fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from google.protobuf.struct_pb2 import Struct

from hansard_server.domain.errors import InvalidMetadata, InvalidRequest
from hansard_server.domain.values import dataclass

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIELDS_MAX = 10_000
"""No request that keeps to the contract has so many fields around its free-form objects."""
_VARINT_MAX_BYTES = 10


@dataclass(frozen=True)
class _Field:
    """A field that is a Struct (`inner` is None), or a message with Structs somewhere inside."""

    name: str
    repeated: bool
    inner: Any


class _NotAMessage(Exception):  # noqa: N818 - reads as what it says
    """The parser will find that too, and say so."""


def check_struct_sizes(raw: bytes, descriptor: Any, max_bytes: int) -> None:
    """Do nothing, or raise InvalidMetadata for a Struct of the message that is larger, serialized.

    Raises InvalidRequest for more fields than any sensible request has.
    """
    if len(raw) <= max_bytes or not _fields_of(descriptor):
        return
    try:
        _Walk(raw, max_bytes).message(0, len(raw), descriptor, "")
    except _NotAMessage:
        return


class _Walk:
    def __init__(self, raw: bytes, max_bytes: int) -> None:
        self._raw = raw
        self._max_bytes = max_bytes
        self._fields_seen = 0
        # Field → bytes: what comes several times is merged, unless it is repeated.
        self._sizes: dict[str, int] = {}

    def message(self, start: int, end: int, descriptor: Any, path: str) -> None:
        fields = _fields_of(descriptor)
        for index, (number, begin, stop) in enumerate(self._parts(start, end)):
            field = fields.get(number)
            if field is None:
                continue
            where = f"{path}.{field.name}" if path else field.name
            if field.repeated:
                where += f"[{index}]"
            if field.inner is not None:
                self.message(begin, stop, field.inner, where)
                continue
            size = self._sizes[where] = self._sizes.get(where, 0) + stop - begin
            if size > self._max_bytes:
                raise InvalidMetadata.of_field(
                    where,
                    f"has {size} bytes serialized, {self._max_bytes} are taken at most",
                )

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, begin and end of the fields that have a length."""
        place = start
        while place < end:
            self._fields_seen += 1
            if self._fields_seen > _FIELDS_MAX:
                raise InvalidRequest(f"the request has more than {_FIELDS_MAX} fields")
            tag, place = self._varint(place, end)
            kind = tag & 7
            if kind == _VARINT:
                _, place = self._varint(place, end)
            elif kind in {_FIXED32, _FIXED64}:
                place += 4 if kind == _FIXED32 else 8
            elif kind == _LENGTH:
                size, place = self._varint(place, end)
                if place + size > end:
                    raise _NotAMessage
                yield tag >> 3, place, place + size
                place += size
            else:
                raise _NotAMessage

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        value = 0
        for index, byte in enumerate(self._raw[place : min(end, place + _VARINT_MAX_BYTES)]):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:  # noqa: PLR2004 - the last byte has no such bit
                return value, place + index + 1
        raise _NotAMessage


@cache
def _fields_of(descriptor: Any) -> Mapping[int, _Field]:
    """Return the fields on the way to Structs; they never contain themselves."""
    fields: dict[int, _Field] = {}
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None:
            continue
        if inner.full_name == Struct.DESCRIPTOR.full_name:
            fields[field.number] = _Field(field.name, field.is_repeated, None)
        elif inner.full_name.startswith("hansard.") and _fields_of(inner):
            fields[field.number] = _Field(field.name, field.is_repeated, inner)
    return fields
