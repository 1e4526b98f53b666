"""A client of gRPC that costs little, so that the server is what is measured: HTTP/2 by hand.

It takes whatever comes as fast as it comes, and understands as much of HPACK as finds a status: it
asks the server for plain header fields (no table), as gRPC's C core then sends them.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import cast

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW, _FRAME_SIZE = 1, 2, 4, 5
_BINARY_METADATA = 0xFE03
"""gRPC's own setting: metadata that are bytes come as bytes."""
_WINDOW_MAX = 2**31 - 1
_WINDOW_DEFAULT = 65_535
_TOP_UP_BYTES = 2**28
_FRAME_MAX_BYTES = 16_384
_FRAMES_AT_ONCE = 16
_FRAME = struct.Struct(">HBBBL")
_MESSAGE = struct.Struct(">BL")
_ID_MASK = 0x7FFFFFFF
_STATUS_NAME = b"grpc-status"
_DETAILS_NAME = b"grpc-status-details-bin"
_HUFFMAN = 0x80
_LENGTH_MAX = 127
# The entries of HPACK's dynamic table begin here, the newest first.
_DYNAMIC = 62


class Stream:
    """One call: what has come of it so far.

    Attributes:
        messages: how many whole messages have come.
        status: grpc's number, once it has ended.
        details: of its status, a google.rpc.Status; empty for none.
    """

    __slots__ = (
        *("_body", "_head", "_keep", "_missing", "details", "ended_at", "messages", "on_end"),
        *("source", "started_at", "status", "unsent", "window"),
    )

    def __init__(
        self,
        on_end: Callable[[Stream], None],
        keep: Callable[[bytes], None] | None = None,
    ) -> None:
        """Call `on_end` with this when it has ended, and `keep` with each message, unparsed."""
        self.messages = 0
        self.status = -1
        self.details = b""
        self.started_at = time.perf_counter()
        self.ended_at = 0.0
        self.on_end = on_end
        self.source: Iterator[bytes] = iter(())
        self.unsent = memoryview(b"")
        self.window = 0
        self._keep = keep
        self._head = b""
        self._missing = 0
        self._body = bytearray()

    def receive(self, data: memoryview) -> None:
        """Take the data of a frame: pieces of messages, or several."""
        position, size = 0, len(data)
        while position < size:
            if not self._missing:
                if self._head or size - position < _MESSAGE.size:
                    position = self._receive_head(data, position)
                    continue
                self._missing = _MESSAGE.unpack_from(data, position)[1]
                position += _MESSAGE.size
                if not self._missing:
                    self._end_message()
                    continue
            taken = min(self._missing, size - position)
            if self._keep is not None:
                self._body += data[position : position + taken]
            self._missing -= taken
            position += taken
            if not self._missing and taken:
                self._end_message()

    def _receive_head(self, data: memoryview, position: int) -> int:
        wanted = _MESSAGE.size - len(self._head)
        piece = bytes(data[position : position + wanted])
        self._head += piece
        if len(self._head) == _MESSAGE.size:
            self._missing = _MESSAGE.unpack(self._head)[1]
            self._head = b""
            if not self._missing:
                self._end_message()
        return position + len(piece)

    def _end_message(self) -> None:
        self.messages += 1
        if self._keep is not None:
            self._keep(bytes(self._body))
            self._body.clear()


class Link(asyncio.Protocol):
    """One connection, for calls of one method with the same metadata."""

    def __init__(self, authority: str, path: str, metadata: Iterable[tuple[str, str]] = ()) -> None:
        self._fields = _first_fields(authority, path, tuple(metadata))
        self._next_fields = _next_fields(len(tuple(metadata)))
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self._rest = b""
        self._received = 0
        self._window = _WINDOW_DEFAULT
        self._stream_window = _WINDOW_DEFAULT
        self._blocked: deque[int] = deque()
        self._out: list[bytes] = []
        self._reading = False
        self._paused = False
        self._ready = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    @property
    def open_streams(self) -> int:
        """How many calls are running."""
        return len(self._streams)

    async def ready(self) -> None:
        """Return when the server has answered for the first time."""
        await self._ready

    def call(self, stream: Stream, message: bytes) -> None:
        """Make a call with one message."""
        self.send(stream, (message,))

    def send(self, stream: Stream, messages: Iterable[bytes]) -> None:
        """Make a call with these messages, sent as fast as the server takes them."""
        number = self._next_id
        self._next_id += 2
        self._streams[number] = stream
        stream.window = self._stream_window
        stream.source = map(framed, messages)
        fields, self._fields = self._fields, self._next_fields
        self._out.append(_frame(_HEADERS, _END_HEADERS, number, fields))
        self._pump(number, stream)
        if not self._reading:
            self._flush()

    def close(self) -> None:
        """Leave, whatever is running."""
        assert self._transport is not None
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what a connection begins with."""
        self._transport = cast("asyncio.Transport", transport)
        ours = {
            _HEADER_TABLE_SIZE: 0,
            _ENABLE_PUSH: 0,
            _INITIAL_WINDOW: _WINDOW_MAX,
            _BINARY_METADATA: 1,
        }
        body = b"".join(struct.pack(">HL", *setting) for setting in ours.items())
        self._out += [_PREFACE, _frame(_SETTINGS, 0, 0, body)]
        self._top_up(_WINDOW_MAX - _WINDOW_DEFAULT)
        self._flush()

    def connection_lost(self, _exc: Exception | None) -> None:
        """End all calls as failed."""
        for stream in self._streams.values():
            stream.on_end(stream)
        self._streams.clear()

    def pause_writing(self) -> None:
        """Wait: the socket is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._unblock()
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self._rest:
            data = self._rest + data
        self._reading = True
        view = memoryview(data)
        position, size = 0, len(data)
        while size - position >= _FRAME.size:
            high, low, kind, flags, number = _FRAME.unpack_from(data, position)
            start = position + _FRAME.size
            end = start + (high << 8 | low)
            if end > size:
                break
            position = end
            self._take(kind, flags, number & _ID_MASK, view[start:end])
        self._rest = data[position:]
        self._reading = False
        self._flush()

    def _take(self, kind: int, flags: int, number: int, body: memoryview) -> None:
        if kind == _DATA:
            self._streams[number].receive(body)
            self._received += len(body)
            if self._received > _TOP_UP_BYTES:
                self._top_up(self._received)
                self._received = 0
            if flags & _END_STREAM:
                self._end(number, b"")
        elif kind == _HEADERS:
            if flags & _END_STREAM:
                self._end(number, bytes(body))
        elif kind == _RST_STREAM:
            self._end(number, b"")
        elif kind == _WINDOW_UPDATE:
            self._grant(number, struct.unpack(">L", body)[0] & _ID_MASK)
        elif not flags & _ACK:
            self._answer(kind, body)

    def _grant(self, number: int, count: int) -> None:
        if not number:
            self._window += count
        elif number in self._streams:
            self._streams[number].window += count
        self._unblock()

    def _answer(self, kind: int, body: memoryview) -> None:
        if kind == _SETTINGS:
            self._settings(body)
        elif kind == _PING:
            self._out.append(_frame(_PING, _ACK, 0, bytes(body)))
        elif kind == _GOAWAY:
            assert self._transport is not None
            self._transport.close()

    def _settings(self, body: memoryview) -> None:
        for place in range(0, len(body), 6):
            name, value = struct.unpack_from(">HL", body, place)
            if name == _INITIAL_WINDOW:
                for stream in self._streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
        self._out.append(_frame(_SETTINGS, _ACK, 0, b""))
        if not self._ready.done():
            self._ready.set_result(None)

    def _end(self, number: int, trailers: bytes) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        stream.ended_at = time.perf_counter()
        stream.status = _status(trailers)
        stream.details = _details(trailers)
        stream.on_end(stream)

    def _pump(self, number: int, stream: Stream) -> None:
        """Send as much of a call as may be sent."""
        while True:
            if not stream.unsent:
                message = next(stream.source, None)
                if message is None:
                    self._out.append(_frame(_DATA, _END_STREAM, number, b""))
                    return
                stream.unsent = memoryview(message)
            size = min(len(stream.unsent), self._window, stream.window, _FRAME_MAX_BYTES)
            if size <= 0 or self._paused:
                self._blocked.append(number)
                return
            self._window -= size
            stream.window -= size
            self._out.append(_frame(_DATA, 0, number, bytes(stream.unsent[:size])))
            stream.unsent = stream.unsent[size:]
            if len(self._out) > _FRAMES_AT_ONCE:
                self._flush()

    def _unblock(self) -> None:
        for _ in range(len(self._blocked)):
            number = self._blocked.popleft()
            if number in self._streams:
                self._pump(number, self._streams[number])

    def _top_up(self, count: int) -> None:
        self._out.append(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">L", count)))

    def _flush(self) -> None:
        if self._out:
            assert self._transport is not None
            out, self._out = b"".join(self._out), []
            self._transport.write(out)


async def connect(
    address: str, path: str, metadata: Iterable[tuple[str, str]] = (), *, count: int = 1
) -> list[Link]:
    """Return so many connections for calls of the method of this path."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    links = []
    fields = tuple(metadata)
    for _ in range(count):
        _, link = await loop.create_connection(
            lambda: Link(address, path, fields), host.strip("[]"), int(port)
        )
        await link.ready()
        links.append(link)
    return links


def framed(message: bytes) -> bytes:
    """Return the message with gRPC's head."""
    return _MESSAGE.pack(0, len(message)) + message


def _frame(kind: int, flags: int, number: int, body: bytes) -> bytes:
    return _FRAME.pack(len(body) >> 8, len(body) & 0xFF, kind, flags, number) + body


def _first_fields(authority: str, path: str, metadata: tuple[tuple[str, str], ...]) -> bytes:
    """Return the header block of a connection's first call; its fields go to the table."""
    fields = (
        *((":path", path), (":authority", authority)),
        *(("content-type", "application/grpc"), ("te", "trailers")),
        *metadata,
    )
    return b"\x83\x86" + b"".join(b"\x40" + _text(name) + _text(value) for name, value in fields)


def _next_fields(extra: int) -> bytes:
    """Return the header block of the next ones: all by the table."""
    return b"\x83\x86" + bytes(0x80 | (_DYNAMIC + place) for place in reversed(range(4 + extra)))


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < _LENGTH_MAX:
        return bytes((len(data),)) + data
    rest = len(data) - _LENGTH_MAX
    assert rest < _LENGTH_MAX
    return bytes((_LENGTH_MAX, rest)) + data


def _status(trailers: bytes) -> int:
    """Return grpc's status; -1 when none came, as after a reset."""
    place = trailers.find(_STATUS_NAME)
    while place >= 0:
        value = place + len(_STATUS_NAME)
        length = trailers[value]
        # Not the name of the details, which begins alike.
        if length and not length & _HUFFMAN and trailers[value + 1 : value + 1 + length].isdigit():
            return int(trailers[value + 1 : value + 1 + length])
        place = trailers.find(_STATUS_NAME, value)
    return -1


def _details(trailers: bytes) -> bytes:
    place = trailers.find(_DETAILS_NAME)
    if place < 0:
        return b""
    place += len(_DETAILS_NAME)
    length, place = trailers[place], place + 1
    assert not length & _HUFFMAN, "the server sends details as text"
    if length == _LENGTH_MAX:
        # HPACK's way to write a number: what does not fit goes on in groups of seven bits.
        shift = 0
        while True:
            octet, place = trailers[place], place + 1
            length += (octet & 0x7F) << shift
            shift += 7
            if not octet & 0x80:
                break
    # The first byte says that it is bytes.
    return trailers[place + 1 : place + length]
