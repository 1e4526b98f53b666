"""Text from others, made fit for a terminal: nothing in it is obeyed, everything is shown."""

from __future__ import annotations

import re

# Control characters but newline and tab, marks that turn the direction of text, line separators
# that only some programs know, and halves of characters.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff]"
)
_PICTURES = 0x2400
_DELETE = 0x7F
_DELETE_PICTURE = "\u2421"


def plain(text: str) -> str:
    r"""Return the text with what a terminal might obey made visible: ESC as the picture of it."""
    return _UNSAFE.sub(_picture, text.replace("\r\n", "\n"))


def one_line(text: str, characters: int = 0) -> str:
    """Return the text as one plain line, cut to so many characters unless that is 0."""
    # Of a long text only the beginning is looked at; spaces are joined, so twice and some.
    room = text[: 4 * characters + 100] if characters else text
    line = plain(" ".join(room.split()))
    if characters and (len(line) > characters or len(room) < len(text)):
        return line[: characters - 1] + "…"
    return line


def json_safe(document: str) -> str:
    r"""Return the JSON document with unsafe characters, which stand in its strings, as \uXXXX."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", document)


def as_utf8(text: str) -> str:
    """Return what was typed, with bytes that are no UTF-8 replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def size(count: int) -> str:
    """Return so many bytes as people say it: 3.2 MiB."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:  # noqa: PLR2004 - what the units mean
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _picture(match: re.Match[str]) -> str:
    number = ord(match[0])
    if number == _DELETE:
        return _DELETE_PICTURE
    return chr(_PICTURES + number) if number < ord(" ") else f"\\u{number:04x}"
