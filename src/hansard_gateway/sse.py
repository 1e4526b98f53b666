"""Server-sent events: frames, and the answer that sends them with signs of life between.

Clients of the documented API lose characters that are split over network chunks, and frames that
hold line ends of Unicode: all JSON is ASCII. A heartbeat is one line without an empty one.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Final

from starlette.types import Receive, Scope, Send

MEDIA_TYPE: Final = "text/event-stream; charset=utf-8"
_HEARTBEAT: Final = b": hb\n"
_HEADERS: Final = [
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    # Proxies that buffer would hold back what is live.
    (b"x-accel-buffering", b"no"),
]


def frame(json_text: str, event_id: str = "") -> bytes:
    """Return a frame with this JSON, which is ASCII on one line."""
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}data: {json_text}\n\n".encode("ascii")


def comment(text: str) -> bytes:
    """Return a line that clients skip."""
    return f": {text}\n".encode("ascii")


class EventStream:
    """An answer of frames, made as the client takes them. The first is there already."""

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        *,
        status: int,
        heartbeat_s: float,
    ) -> None:
        """Send `first` and then `rest`, which is closed at the end, whatever that is."""
        self._first = first
        self._rest = rest
        self._status = status
        self._heartbeat_s = heartbeat_s
        self._sending = False
        self._gone = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; when the client goes away, stop."""
        main = asyncio.current_task()
        assert main is not None  # noqa: S101 - ASGI applications run in tasks
        beside = asyncio.create_task(self._accompany(main, receive, send))
        try:
            async with aclosing(self._rest) as frames:
                await send(
                    {"type": "http.response.start", "status": self._status, "headers": _HEADERS}
                )
                await self._send(send, self._first)
                async for each in frames:
                    await self._send(send, each)
            await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            if not self._gone:
                raise
            main.uncancel()
        finally:
            beside.cancel()
            with suppress(asyncio.CancelledError):
                await beside

    async def _send(self, send: Send, data: bytes) -> None:
        self._sending = True
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending = False

    async def _accompany(self, main: asyncio.Task[object], receive: Receive, send: Send) -> None:
        """Give signs of life while there is no news, and notice when the client goes."""
        while True:
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    message = await receive()
            except TimeoutError:
                # A client that does not even take what there is needs no sign of life.
                if not self._sending:
                    await self._send(send, _HEARTBEAT)
                continue
            if message["type"] == "http.disconnect":
                self._gone = True
                main.cancel()
                return
