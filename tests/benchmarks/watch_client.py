"""A client that watches: arguments are address, how many watches, and a session or `idle-{}`.

`{}` stands for the number of the watch. For every number of seconds on standard input it answers
with a line of what came in that time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc.aio
import uvloop

from hansard.v1 import event_service_pb2
from tests.benchmarks.messages import AGENT_KEY

CONNECTIONS = 10


class Watcher:
    """Counts what comes, unparsed."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.messages = 0
        self.caught_up = 0

    async def watch(self, channel: grpc.aio.Channel, session_key: str, after: int) -> None:
        """Watch a session for ever."""
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
        call = channel.unary_stream("/hansard.v1.EventService/WatchEvents")
        request = event_service_pb2.WatchEventsRequest(
            agent_key=AGENT_KEY, session_key=session_key, after_sequence=after
        )
        stream = call(request.SerializeToString())
        first = True
        async for _ in stream:
            if first:
                self.caught_up += 1
                first = False
            else:
                self.messages += 1


async def main(address: str, count: int, session: str) -> None:
    """Watch, and count whenever told to, until the input ends."""
    loop = asyncio.get_running_loop()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CONNECTIONS)]
    watcher = Watcher()
    watches = [
        loop.create_task(watcher.watch(channels[n % CONNECTIONS], session.format(n), 0))
        for n in range(count)
    ]
    while watcher.caught_up < count:
        ended = [watch for watch in watches if watch.done()]
        if ended:
            ended[0].result()
        await asyncio.sleep(0.05)
    sys.stdout.write(json.dumps({"watches": watcher.caught_up}) + "\n")
    sys.stdout.flush()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        before, started, cpu = watcher.messages, time.perf_counter(), time.process_time()
        await asyncio.sleep(float(line))
        seconds = time.perf_counter() - started
        answer = {
            "messages": watcher.messages - before,
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
