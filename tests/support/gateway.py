"""The HTTP door in front of a server of this process, on a port of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from hansard_gateway.serving import Gateway
from hansard_gateway.settings import Options
from hansard_gateway.sockets import listen
from tests.support.server import Running


@dataclass(frozen=True)
class Door:
    """A gateway, an HTTP client for it, and the server behind it."""

    gateway: Gateway
    url: str
    http: httpx.AsyncClient
    server: Running
    port: int


@asynccontextmanager
async def open_door(
    server: Running, options: Options | None = None, *, target: str = ""
) -> AsyncIterator[Door]:
    """Give a gateway that serves in this process until the context ends.

    It finds its server at the target, which is the server's address unless said otherwise.
    """
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    options = options or Options(drain_deadline_s=2)
    gateway = Gateway(listener, target or server.server.address, options)
    running = asyncio.create_task(gateway.run())
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            yield Door(gateway, url, http, server, port)
    finally:
        gateway.stop()
        await running


@dataclass
class Frame:
    """A server-sent event."""

    data: dict[str, Any]
    id: str = ""


@dataclass
class Frames:
    """What an answer of server-sent events held, and the lines that clients skip."""

    frames: list[Frame] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    @property
    def types(self) -> list[str]:
        """The types of all frames."""
        return [frame.data["type"] for frame in self.frames]


def parse_frames(text: str) -> Frames:
    """Return the frames of a whole answer; each must end with an empty line."""
    found = Frames()
    assert text.isascii()
    assert text.endswith("\n\n")
    for block in text.split("\n\n")[:-1]:
        event_id, data = "", []
        for line in block.split("\n"):
            if line.startswith(":"):
                found.comments.append(line)
            elif line.startswith("id: "):
                event_id = line[4:]
            elif line.startswith("data: "):
                data.append(line[6:])
        found.frames.append(Frame(json.loads("\n".join(data)), event_id))
    return found


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so."""
    while True:
        if await check():
            return
        await asyncio.sleep(0.01)
