"""Streams whose clients stopped reading: they are ended, with the place to go on from.

grpc takes a few MiB for a client that does not read, and then parks whoever writes. Nobody else
tells such a client from one that is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import field
from typing import Any

from hansard_server.domain.errors import StreamStalled
from hansard_server.domain.values import dataclass

_LOOKS = 4
"""So many looks in the time after which a stream is ended."""

Write = Callable[[Any], Awaitable[None]]


@dataclass(slots=True)
class Place:
    """Where a stream is in its session: what is being written, and what has been taken."""

    session_uid: str = ""
    sequence: int = 0
    taken: int = 0


_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


def current_place() -> Place:
    """Return the place of the stream that is being served, for its servicer to keep up to date."""
    return _PLACE.get() or Place()


@dataclass(slots=True, eq=False)
class _Stream:
    scope: asyncio.Timeout
    parked_at: float = 0.0
    place: Place = field(default_factory=Place)


class Stalls:
    """Writes streams, and ends those whose client has taken nothing for a time."""

    def __init__(self, stall_s: float) -> None:
        """End a stream after `stall_s` seconds in one write; 0: never."""
        self._stall_s = stall_s
        self._streams: set[_Stream] = set()

    async def write_all(self, responses: AsyncIterator[Any], write: Write) -> None:
        """Write what the iterator, an asynchronous generator, yields. Raises StreamStalled."""
        # In a task of its own: waking a stream would otherwise go through the frames of everything
        # that has let the call in, a tenth of what a delivery to one of a thousand costs.
        await asyncio.create_task(self._write_all(responses, write), name="stream")

    async def _write_all(self, responses: AsyncIterator[Any], write: Write) -> None:
        stream = _Stream(asyncio.timeout(None))
        _PLACE.set(stream.place)
        self._streams.add(stream)
        try:
            async with stream.scope, aclosing(responses) as source:  # type: ignore[type-var]
                await _write_each(stream, source, write)
        except TimeoutError:
            if not stream.scope.expired():
                raise
            raise self._stalled(stream.place) from None
        finally:
            self._streams.discard(stream)

    async def run(self) -> None:
        """Look at all streams once in a while, for ever."""
        if not self._stall_s:
            return
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._stall_s / _LOOKS)
            now = loop.time()
            for stream in tuple(self._streams):
                if stream.parked_at and now - stream.parked_at > self._stall_s:
                    stream.scope.reschedule(now)

    def _stalled(self, place: Place) -> StreamStalled:
        metadata = {}
        if place.session_uid:
            metadata = {"session_uid": place.session_uid, "sequence": str(place.taken)}
        return StreamStalled(
            f"the client took nothing for {self._stall_s:g} s; go on from the last sequence",
            metadata=metadata,
        )


async def _write_each(stream: _Stream, responses: AsyncIterator[Any], write: Write) -> None:
    loop = asyncio.get_running_loop()
    place = stream.place
    async for response in responses:
        stream.parked_at = loop.time()
        await write(response)
        stream.parked_at = 0.0
        place.taken = place.sequence
