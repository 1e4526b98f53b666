"""A client that speaks HTTP/2 itself, for what no client of gRPC would do."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import h2.config
import h2.connection
import h2.events

E = TypeVar("E", bound=h2.events.Event)

PATIENCE_S = 60.0


class RawConnection:
    """One connection. What the server says is kept in `events`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.events: list[h2.events.Event] = []
        self.closed = False
        self._reader = reader
        self._writer = writer
        self._authority = "localhost"

    async def begin(self) -> None:
        """Send the preface, and wait for the server's settings."""
        self.h2.initiate_connection()
        await self.flush()
        await self.wait_for(h2.events.RemoteSettingsChanged)

    async def start_call(self, method: str, *more: tuple[str, str]) -> int:
        """Send the headers of a call; return its stream."""
        stream = self.h2.get_next_available_stream_id()
        headers = [
            *((":method", "POST"), (":scheme", "http"), (":path", f"/{method}")),
            *((":authority", self._authority), ("te", "trailers")),
            ("content-type", "application/grpc"),
            *more,
        ]
        self.h2.send_headers(stream, headers)
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> int:
        """Send as much of the data as the server's window takes; return how much that was."""
        sent = 0
        while sent < len(data):
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if not room:
                break
            part = data[sent : sent + room]
            sent += len(part)
            self.h2.send_data(stream, part, end_stream=end and sent == len(data))
        await self.flush()
        return sent

    async def flush(self) -> None:
        """Send what waits."""
        self._writer.write(self.h2.data_to_send())
        await self._writer.drain()

    async def wait_for(self, kind: type[E], matches: Callable[[E], bool] = lambda _: True) -> E:
        """Return the first event of the kind that matches; an AssertionError when none comes."""
        async with asyncio.timeout(PATIENCE_S):
            seen = 0
            while True:
                for event in self.events[seen:]:
                    if isinstance(event, kind) and matches(event):
                        return event
                seen = len(self.events)
                assert not self.closed, f"closed before {kind.__name__}: {self.events}"
                await self.receive()

    async def wait_closed(self) -> None:
        """Return when the server has closed the connection."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.closed:
                await self.receive()

    async def receive(self) -> None:
        """Take what comes next."""
        try:
            data = await self._reader.read(65_536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        self.events += self.h2.receive_data(data)
        await self.flush()


@asynccontextmanager
async def raw_connection(address: str) -> AsyncIterator[RawConnection]:
    """Give a connection that has begun."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        connection = RawConnection(reader, writer)
        await connection.begin()
        yield connection
    finally:
        writer.close()


def frame(message: bytes, *, length: int | None = None) -> bytes:
    """Return gRPC's frame of a message; `length` is what it says of itself."""
    return struct.pack(">BI", 0, len(message) if length is None else length) + message


def header(events: list[h2.events.Event], stream: int, name: str) -> str | None:
    """Return a header or trailer that the server sent on the stream."""
    kinds = (h2.events.ResponseReceived, h2.events.TrailersReceived)
    for event in events:
        if isinstance(event, kinds) and event.stream_id == stream:
            found = dict(event.headers or ()).get(name.encode())
            if found is not None:
                return found.decode()
    return None
