"""A client that keeps 64 calls running, each in its own session: arguments are address, workload,
key (empty for none).

For every number of seconds on standard input it answers with a line of counts. Each run has
sessions of its own, so that none becomes long.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

import grpc.aio
import uvloop

from hansard.v1 import event_service_pb2, event_service_pb2_grpc
from tests.benchmarks.fill import AGENT_KEY
from tests.support.talk import message, output

AT_A_TIME = 64
EVENT_BYTES = 500


def session_keys(workload: str, run_number: int) -> list[str]:
    """Return the sessions of a client's run, the first being 0."""
    return [f"{workload}-{run_number}-{number}" for number in range(AT_A_TIME)]


@dataclass(slots=True)
class Counts:
    """What the client did in one run."""

    calls: int = 0
    messages: int = 0
    milliseconds: list[float] = field(default_factory=list)


class Workload:
    """Calls of EventService, each with a request_id of its own."""

    def __init__(self, stub: event_service_pb2_grpc.EventServiceAsyncStub, key: str) -> None:
        """Call by `stub`, with the key."""
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._client = secrets.token_hex(4)
        self._numbers = count()

    async def append(self, session_key: str) -> int:
        """Append one event; return how many messages came back."""
        await self._stub.AppendEvents(
            event_service_pb2.AppendEventsRequest(
                agent_key=AGENT_KEY,
                session_key=session_key,
                request_id=self._request_id(),
                events=[output("x" * EVENT_BYTES)],
            ),
            metadata=self._metadata,
        )
        return 1

    async def send(self, session_key: str) -> int:
        """Send an input; return how many messages its turn was."""
        request = event_service_pb2.SendEventRequest(
            agent_key=AGENT_KEY,
            session_key=session_key,
            request_id=self._request_id(),
            input_message=message("Where is my parcel?"),
        )
        messages = 0
        ended = False
        async for response in self._stub.SendEvent(request, metadata=self._metadata):
            messages += 1
            ended = response.HasField("turn_end") and not response.turn_end.turn.HasField("error")
        assert ended
        return messages

    def _request_id(self) -> str:
        return f"{self._client}-{next(self._numbers)}"


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


async def main(address: str, workload: str, key: str) -> None:
    """Run whenever told to, until the input ends."""
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(address) as channel:
        stub: event_service_pb2_grpc.EventServiceAsyncStub
        stub = event_service_pb2_grpc.EventServiceStub(channel)
        call = getattr(Workload(stub, key), workload)
        run_numbers = count()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            started, cpu = time.perf_counter(), time.process_time()
            counts = await run(call, session_keys(workload, next(run_numbers)), float(line))
            answer = {
                "calls": counts.calls,
                "messages": counts.messages,
                "p50_ms": statistics.median(counts.milliseconds),
                "p99_ms": statistics.quantiles(counts.milliseconds, n=100)[-1],
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu,
            }
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:4]))
