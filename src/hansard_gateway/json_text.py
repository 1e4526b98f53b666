"""JSON as text: objects with the place of each member, so that what is kept verbatim stays so.

The scanner is the standard library's. What it would let pass is refused: duplicate keys, NaN and
infinities, text that is no UTF-8. Numbers stay the digits that they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json import decoder
from typing import Any, Final, NoReturn

_SPACE: Final = re.compile(r"[ \t\n\r]*")
# Documented nowhere, and there since Python 2.6: it is how the decoder reads strings.
_scan_string: Final = decoder.scanstring  # type: ignore[attr-defined]
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")
_LINE_ENDS: Final = re.compile(r"[\r\n]+")


class Digits(str):
    """A number as it was written."""

    __slots__ = ()


class NotJson(Exception):  # noqa: N818 - reads as what it says
    """The text is not JSON as it is taken here; the message says why."""


class Member:
    """A value in a JSON text.

    Attributes:
        value: as Python has it; numbers are Digits.
        text: the whole text it stands in.
        start: where it begins there.
        end: where it ends.
    """

    __slots__ = ("end", "start", "text", "value")

    def __init__(self, value: Any, text: str, start: int, end: int) -> None:
        self.value = value
        self.text = text
        self.start = start
        self.end = end

    @property
    def raw(self) -> str:
        """The value, verbatim."""
        return self.text[self.start : self.end]

    def members(self) -> dict[str, Member]:
        """Return the members of an object, each with its place."""
        return dict(_members(self.text, self.start))

    def items(self) -> list[Member]:
        """Return the items of an array, each with its place."""
        return list(_items(self.text, self.start))


def parse(data: bytes) -> Member:
    """Return the JSON value that the bytes are. Raises NotJson."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise NotJson("is not UTF-8") from None
    start = _skip(text, 0)
    member = _scan(text, start)
    if _skip(text, member.end) != len(text):
        raise NotJson(f"has something after its end, at character {member.end}")
    return member


def to_line(raw: str) -> str:
    """Return the JSON text in ASCII, on one line; it says the same, to the digit."""
    line = _LINE_ENDS.sub(" ", raw) if "\n" in raw or "\r" in raw else raw
    return line if line.isascii() else _NOT_ASCII.sub(_escape, line)


def _escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotJson(f"has the key {json.dumps(key[:64])} twice in one object")
            seen.add(key)
    return found


def _refuse(constant: str) -> NoReturn:
    raise NotJson(f"holds {constant}, which is no JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=Digits, parse_float=Digits, parse_constant=_refuse
)


def _scan(text: str, start: int) -> Member:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise NotJson(f"is not JSON: {error.msg.lower()}, at character {error.pos}") from None
    except RecursionError:
        raise NotJson("is nested too deeply") from None
    return Member(value, text, start, end)


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _members(text: str, start: int) -> Iterator[tuple[str, Member]]:
    """Yield the members of the object at `start`, which has been scanned before."""
    place = _skip(text, start + 1)
    while text[place] == '"':
        key, place = _scan_string(text, place + 1, True)  # noqa: FBT003 - it takes no keywords
        member = _scan(text, _skip(text, _skip(text, place) + 1))
        yield key, member
        place = _skip(text, member.end)
        if text[place] == ",":
            place = _skip(text, place + 1)


def _items(text: str, start: int) -> Iterator[Member]:
    """Yield the items of the array at `start`, which has been scanned before."""
    place = _skip(text, start + 1)
    while text[place] != "]":
        member = _scan(text, place)
        yield member
        place = _skip(text, member.end)
        if text[place] == ",":
            place = _skip(text, place + 1)
