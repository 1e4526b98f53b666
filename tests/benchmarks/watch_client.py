"""A client that watches: arguments are address, how many watches, and a session or `idle-{}`.

`{}` stands for the number of the watch. For every number of seconds on standard input it answers
with a line of what came in that time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from hansard.v1 import event_service_pb2
from tests.benchmarks.frames import Link, Stream, connect
from tests.benchmarks.messages import AGENT_KEY

CONNECTIONS = 10
_OPEN_AT_ONCE = 200


class Watchers:
    """Counts what comes, unparsed."""

    def __init__(self, links: list[Link]) -> None:
        """Watch by these connections."""
        self._links = links
        self._streams: list[Stream] = []
        self.ended = 0

    @property
    def caught_up(self) -> int:
        """How many have been told something: with nothing stored, that they have caught up."""
        return sum(stream.messages > 0 for stream in self._streams)

    @property
    def messages(self) -> int:
        """How many messages have come."""
        return sum(stream.messages for stream in self._streams)

    def watch(self, session_key: str) -> None:
        """Watch a session for ever."""
        request = event_service_pb2.WatchEventsRequest(agent_key=AGENT_KEY, session_key=session_key)
        stream = Stream(self._end)
        self._links[len(self._streams) % len(self._links)].call(stream, request.SerializeToString())
        self._streams.append(stream)

    def _end(self, _stream: Stream) -> None:
        self.ended += 1


async def main(address: str, count: int, session: str) -> None:
    """Watch, and count whenever told to, until the input ends."""
    loop = asyncio.get_running_loop()
    links = await connect(address, "/hansard.v1.EventService/WatchEvents", count=CONNECTIONS)
    watchers = Watchers(links)
    for number in range(count):
        watchers.watch(session.format(number))
        # Who opens thousands at once is told to come again later.
        while number + 1 - watchers.caught_up > _OPEN_AT_ONCE:  # noqa: ASYNC110 - streams don't say
            await asyncio.sleep(0.002)
    while watchers.caught_up < count:
        assert not watchers.ended, "a watch has ended"
        await asyncio.sleep(0.05)
    _tell({"watches": watchers.caught_up})
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        before, started, cpu = watchers.messages, time.perf_counter(), time.process_time()
        await asyncio.sleep(float(line))
        seconds = time.perf_counter() - started
        _tell(
            {
                "messages": watchers.messages - before,
                "open": count - watchers.ended,
                "seconds": seconds,
                "cpu_seconds": time.process_time() - cpu,
            }
        )


def _tell(answer: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
