"""A client that keeps 64 streamed turns running over HTTP; see load_client for how it is told to.

It reads HTTP by hand, so that it takes what the server sends as fast as a client over gRPC does.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

import uvloop

from tests.benchmarks.load_client import session_keys
from tests.benchmarks.messages import AGENT_KEY

_END = b"\r\n0\r\n\r\n"
_BODY = json.dumps(
    {
        "type": "input_message",
        "messages": [{"type": "text", "content": "Where is my parcel?"}],
        "stream_response": True,
    }
)


class Turns:
    """Streamed turns, each session on a connection of its own."""

    def __init__(self, host: str, port: int) -> None:
        """Connect there."""
        self._where = host, port
        self._connections: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def send(self, session_key: str) -> int:
        """Send an input; return how many frames its turn was."""
        place = session_key.rpartition("-")[2]
        known = self._connections.get(place)
        # Idle ones are closed between runs.
        if known is None or known[0].at_eof():
            self._connections[place] = await asyncio.open_connection(*self._where, limit=1 << 20)
        reader, writer = self._connections[place]
        head = (
            f"POST /v2/agents/{AGENT_KEY}/sessions/{session_key}/events HTTP/1.1\r\nhost: x\r\n"
            f"content-type: application/json\r\ncontent-length: {len(_BODY)}\r\n\r\n"
        )
        writer.write((head + _BODY).encode())
        answer = await reader.readuntil(_END)
        assert answer.startswith(b"HTTP/1.1 201 "), answer[:500]
        assert b'"status":"completed"' in answer
        return answer.count(b"data: ")


@dataclass(slots=True)
class Counts:
    """What the client did in one run."""

    calls: int = 0
    messages: int = 0
    milliseconds: list[float] = field(default_factory=list)


async def run(call: Callable[[str], Awaitable[int]], keys: list[str], seconds: float) -> Counts:
    """Return what came of calling for so long, a session after another call of it at a time."""
    counts = Counts()
    deadline = time.perf_counter() + seconds

    async def work(session_key: str) -> None:
        while (started := time.perf_counter()) < deadline:
            messages = await call(session_key)
            counts.milliseconds.append((time.perf_counter() - started) * 1_000)
            counts.calls += 1
            counts.messages += messages

    await asyncio.gather(*map(work, keys))
    return counts


async def main(address: str, workload: str) -> None:
    """Run whenever told to, until the input ends."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    turns, run_numbers = Turns(host, int(port)), count()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        started, cpu = time.perf_counter(), time.process_time()
        counts = await run(turns.send, session_keys(workload, next(run_numbers)), float(line))
        answer = {
            "calls": counts.calls,
            "messages": counts.messages,
            "p50_ms": statistics.median(counts.milliseconds),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))
