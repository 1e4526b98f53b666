"""multipart/form-data as it comes in: parts are told while they arrive, none is held whole.

https://www.rfc-editor.org/rfc/rfc7578
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from hansard_gateway.errors import HttpError


@dataclass(slots=True)
class Part:
    """A part begins.

    Attributes:
        name: of the form's field.
        filename: None when the part is no file.
        media_type: as the client says it, or "".
    """

    name: str = ""
    filename: str | None = None
    media_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class PartEnd:
    """The part is complete."""


Told = Part | bytes | PartEnd


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that the header names. Raises HttpError."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _bad("names no boundary in its content-type")
    return boundary


async def parse(body: AsyncIterable[bytes], boundary: bytes) -> AsyncGenerator[Told, None]:
    """Yield each part, its bytes in pieces, and its end. Raises HttpError."""
    events: list[Told] = []
    collector = _Collector(events)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        async for chunk in body:
            parser.write(chunk)
            for event in events:
                yield event
            events.clear()
    except FormParserError:
        raise _bad("is not multipart/form-data as its header says") from None
    if not collector.ended:
        raise _bad("ends before its last part does")


class _Collector:
    def __init__(self, events: list[Told]) -> None:
        self.ended = False
        self._events = events
        self._part = Part()
        self._name = bytearray()
        self._value = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._headers,
            "on_part_data": lambda data, start, end: self._events.append(data[start:end]),
            "on_part_end": lambda: self._events.append(PartEnd()),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._part = Part()

    def _header(self) -> None:
        try:
            name, value = self._name.decode("ascii").lower(), self._value.decode()
        except UnicodeDecodeError:
            raise _bad("has a part with a header that is no UTF-8") from None
        self._part.headers[name] = value
        self._name.clear()
        self._value.clear()

    def _headers(self) -> None:
        part = self._part
        disposition = part.headers.get("content-disposition", "")
        # The parser's options are Latin-1, as WSGI has them.
        kind, options = parse_options_header(disposition.encode().decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise _bad("has a part without a form-data disposition and a name")
        part.name = options[b"name"].decode(errors="replace")
        if b"filename" in options:
            part.filename = options[b"filename"].decode()
        part.media_type = part.headers.get("content-type", "")
        self._events.append(part)

    def _end(self) -> None:
        self.ended = True


def _bad(problem: str) -> HttpError:
    return HttpError("invalid_request", [f"the body {problem}"])
