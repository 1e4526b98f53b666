"""Providers of models as a process: OpenAI's, Anthropic's and Google's interfaces on one port.

What it answers it is told by POST /control/<model>, a list of replies, which requests for that
model take one after the other. A reply is {"parts": […]} (see formats.py) with, where wanted,
`pause_s` before each frame and `stop` {label, nth, how}: before the nth frame of that label the
stream is `reset`, `close`d as if it were whole, made to `hang`, goes on with a `malformed` frame or
ends with an `error` frame; or it is {"status", "message", "headers"}. What a provider would refuse
is answered 400 whatever the reply. GET /control/<model> tells what was asked and what came of it.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.support.providers.formats import FRAMES, Reply, error_body
from tests.support.providers.rules import FAULTS

KEY = "sk-test-0123456789abcdef-secret"
_KEY_HEADERS = {"openai": "authorization", "anthropic": "authorization", "google": "x-goog-api-key"}
_MALFORMED = {
    "openai": b'data: {"id":"x","choices":[{"delta":{"cont\n\n',
    "anthropic": b'event: content_block_delta\ndata: {"type":"content_block_delta","del\n\n',
    "google": b'data: {"candidates":[{"con\n\n',
}


@dataclass
class Asked:
    """One request and what became of it: `whole`, `cut` by us, or the client was `gone`."""

    provider: str
    fault: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    end: str = ""
    labels: list[str] = field(default_factory=list)


class Providers:
    """The replies that wait, and what was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, deque[Reply]] = defaultdict(deque)
        self.asked: dict[str, list[Asked]] = defaultdict(list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip() for name, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = urlsplit(target).path
        if path.startswith("/control/"):
            return await self._control(writer, method, path.removeprefix("/control/"), body)
        return await self._answer(reader, writer, path, headers, json.loads(body))

    async def _control(
        self, writer: asyncio.StreamWriter, method: str, lane: str, body: bytes
    ) -> bool:
        if method == "POST":
            self.replies[lane].extend(json.loads(body))
        asked = [asdict(one) for one in self.asked[lane]]
        return await _send(writer, 200, {"asked": asked, "left": len(self.replies[lane])})

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        path: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
    ) -> bool:
        provider, model = _route(path, body)
        key = headers.get(_KEY_HEADERS[provider], "").removeprefix("Bearer ")
        asked = Asked(provider, FAULTS[provider](body), headers, body)
        self.asked[model].append(asked)
        if key != KEY:
            message = f"Incorrect API key provided: {key[:8]}***{key[-4:]} ({key})."
            return await _send(writer, 401, error_body(provider, 401, message))
        if asked.fault:
            return await _send(writer, 400, error_body(provider, 400, asked.fault))
        if not self.replies[model]:
            return await _send(writer, 503, error_body(provider, 503, "no reply is left"))
        reply = self.replies[model].popleft()
        if "status" in reply:
            error = error_body(provider, reply["status"], reply.get("message", "so it is"))
            return await _send(writer, reply["status"], error, reply.get("headers", {}))
        return await _Stream(reader, writer, asked, reply).send(provider, model)


class _Stream:
    """One answer on its way."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: Asked,
        reply: Reply,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._asked = asked
        self._reply = reply
        self._begun = False

    async def send(self, provider: str, model: str) -> bool:
        """Send the frames; return whether the connection goes on."""
        gone = asyncio.create_task(self._reader.read(1))
        try:
            return await self._send_frames(provider, model, gone)
        except ConnectionError:
            self._asked.end = "gone"
            return False
        finally:
            gone.cancel()

    async def _send_frames(self, provider: str, model: str, gone: asyncio.Task[bytes]) -> bool:
        stop: dict[str, Any] = self._reply.get("stop") or {}
        place = (stop.get("label"), stop.get("nth", 0))
        for label, frame in FRAMES[provider](self._reply, model):
            here = (label, self._asked.labels.count(label)) == place
            if here and stop["how"] == "malformed":
                await self._write(_MALFORMED[provider])
            elif here:
                return await self._stop(stop["how"], provider, gone)
            if self._reply.get("pause_s"):
                await asyncio.wait((gone,), timeout=self._reply["pause_s"])
            if gone.done():
                self._asked.end = "gone"
                return False
            self._asked.labels.append(label)
            await self._write(frame)
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        self._asked.end = "whole"
        # The task that watched may have the next request's first byte: begin anew.
        return False

    async def _stop(self, how: str, provider: str, gone: asyncio.Task[bytes]) -> bool:
        self._asked.end = "cut"
        match how:
            case "hang":
                await gone
                self._asked.end = "gone"
            case "close":
                await self._write(b"")
                self._writer.write(b"0\r\n\r\n")
                await self._writer.drain()
            case "error":
                error = error_body(provider, 529, "Overloaded")
                kind = b"event: error\n" if provider == "anthropic" else b""
                await self._write(kind + b"data: " + json.dumps(error).encode() + b"\n\n")
                self._writer.write(b"0\r\n\r\n")
                await self._writer.drain()
            case _:
                await self._writer.drain()
                sock = self._writer.get_extra_info("socket")
                sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                self._writer.transport.abort()
        return False

    async def _write(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            )
        if data:
            self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self._writer.drain()


def _route(path: str, body: Mapping[str, Any]) -> tuple[str, str]:
    """Return whose interface it is, and the model."""
    if path.endswith("/chat/completions"):
        return "openai", body["model"]
    if path.endswith("/messages"):
        return "anthropic", body["model"]
    return "google", path.rpartition("/")[2].partition(":")[0]


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    value: object,
    headers: Mapping[str, str] | None = None,
) -> bool:
    data = json.dumps(value).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    writer.write(
        f"HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\n{more}"
        f"content-length: {len(data)}\r\n\r\n".encode()
        + data
    )
    await writer.drain()
    return True


async def _main(port: int) -> None:
    server = await asyncio.start_server(
        Providers().serve, "127.0.0.1", port, reuse_address=True, limit=64 * 1024 * 1024
    )
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
