"""A client that keeps calls running: arguments are address, workload, key (empty for none), and how
many at a time (64 unless told).

For every line on standard input, of seconds to count and, if it says so, seconds to run before, it
answers with a line of counts. Each run has sessions of its own, so that none becomes long.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count, cycle, islice
from typing import Any

import uvloop
from google.rpc import error_details_pb2, status_pb2

from tests.benchmarks import messages
from tests.benchmarks.frames import Link, Stream, connect

AT_A_TIME = 64
CONNECTIONS = 8
_OK = 0
_A2A_PATH = "/lf.a2a.v1.A2AService/SendStreamingMessage"
_RESOURCE_EXHAUSTED = 8
_STAMP = re.compile(rb"@(\d+);")
_NS_PER_MS = 1_000_000


def session_keys(workload: str, run_number: int) -> list[str]:
    """Return the sessions of a client's run, the first being 0."""
    return [f"{workload}-{run_number}-{number}" for number in range(AT_A_TIME)]


class Calls:
    """What is sent; each call that takes a request_id has one of its own."""

    def __init__(self) -> None:
        self._client = secrets.token_hex(4)
        self._numbers = count()
        self._upload = messages.Upload()

    def of(self, workload: str) -> tuple[str, Callable[[str], Iterable[bytes]]]:
        """Return the path of a workload's method, and what makes a call's messages of a session.

        For `download` the session is `session_key/artifact_id`, for `a2a` the request.
        """
        return {
            "append": ("EventService/AppendEvents", self._append),
            "send": ("EventService/SendEvent", self._send),
            "deltas": ("EventService/SendEvent", self._deltas),
            "list": ("EventService/ListEvents", self._list),
            "upload": ("ArtifactService/UploadArtifacts", self._upload_file),
            "download": ("ArtifactService/DownloadArtifact", self._download),
            "a2a": (_A2A_PATH, lambda request: (bytes.fromhex(request),)),
        }[workload]

    def _append(self, session: str) -> Iterable[bytes]:
        return (messages.append(session, self._request_id()).SerializeToString(),)

    def _send(self, session: str) -> Iterable[bytes]:
        return (messages.send(session, self._request_id()).SerializeToString(),)

    def _deltas(self, session: str) -> Iterable[bytes]:
        request = messages.send(session, self._request_id(), messages.CLOCK_KEY)
        return (request.SerializeToString(),)

    def _list(self, session: str) -> Iterable[bytes]:
        return (messages.list_events(session).SerializeToString(),)

    def _upload_file(self, session: str) -> Iterable[bytes]:
        return self._upload.messages(session, self._request_id())

    def _download(self, place: str) -> Iterable[bytes]:
        session, _, artifact_id = place.partition("/")
        return (messages.download(session, artifact_id).SerializeToString(),)

    def _request_id(self) -> str:
        return f"{self._client}-{next(self._numbers)}"


class Run:
    """Calls for a time: as soon as one has ended the next of its session begins."""

    def __init__(
        self, links: list[Link], make: Callable[[str], Iterable[bytes]], *, stamps: bool
    ) -> None:
        """Call by `links`; with `stamps` the time since each time told is kept."""
        self.calls = self.messages = 0
        self.milliseconds: list[float] = []
        self.ages_ms: list[float] = []
        self.others: Counter[int] = Counter()
        self.waits_s: list[float] = []
        self._links = links
        self._make = make
        self._stamps = stamps
        self._newest = 0
        self._uncounted = False
        self._counted_from = 0.0
        self._deadline = 0.0
        self._running = 0
        self._ended = asyncio.get_running_loop().create_future()

    async def run(self, keys: list[str], seconds: float, uncounted_s: float) -> float:
        """Return when the time is over and the last call has ended: how many seconds count."""
        self._uncounted = bool(uncounted_s)
        self._counted_from = time.perf_counter() + uncounted_s
        self._deadline = self._counted_from + seconds
        self._running = len(keys)
        for key, link in zip(keys, cycle(self._links), strict=False):
            self._begin(link, key)
        await self._ended
        # A load that begins to fade is none.
        return seconds if uncounted_s else time.perf_counter() - self._counted_from

    def _begin(self, link: Link, key: str) -> None:
        keep = self._keep if self._stamps else None
        link.send(Stream(partial(self._end, link, key), keep), self._make(key))

    def _end(self, link: Link, key: str, stream: Stream) -> None:
        if self._counts(stream):
            self._count(stream)
        going_on = 0 < stream.ended_at < self._deadline
        wait_s = 0.0
        if stream.status == _RESOURCE_EXHAUSTED:
            wait_s = _retry_after_s(stream.details)
            self.waits_s.append(wait_s)
        if going_on and not wait_s:
            self._begin(link, key)
        elif going_on and stream.ended_at + wait_s < self._deadline:
            asyncio.get_running_loop().call_later(wait_s, self._begin, link, key)
        else:
            self._running -= 1
            if not self._running:
                self._ended.set_result(None)

    def _counts(self, stream: Stream) -> bool:
        if not stream.ended_at:
            return True
        late = self._uncounted and stream.ended_at >= self._deadline
        return stream.ended_at >= self._counted_from and not late

    def _count(self, stream: Stream) -> None:
        if stream.status == _OK:
            self.calls += 1
            self.messages += stream.messages
            self.milliseconds.append((stream.ended_at - stream.started_at) * 1_000)
        else:
            self.others[stream.status] += 1

    def _keep(self, body: bytes) -> None:
        now = time.perf_counter_ns()
        # The event that is stored says them all again.
        new = [stamp for stamp in map(int, _STAMP.findall(body)) if stamp > self._newest]
        self.ages_ms += [(now - stamp) / _NS_PER_MS for stamp in new]
        self._newest = max(new, default=self._newest)


async def main(
    address: str, workload: str, key: str, at_a_time: str = str(AT_A_TIME), place: str = ""
) -> None:
    """Run whenever told to, until the input ends; with `place` in the one session of that key."""
    loop = asyncio.get_running_loop()
    path, make = Calls().of(workload)
    metadata = [("authorization", f"Bearer {key}")] if key else []
    many = int(at_a_time)
    links = await connect(
        address,
        path if path.startswith("/") else f"/hansard.v1.{path}",
        metadata,
        count=min(CONNECTIONS, many),
    )
    run_numbers = count()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        keys = [place] if place else session_keys(workload, next(run_numbers))
        keys = list(islice(cycle(keys), many))
        run = Run(links, make, stamps=workload == "deltas")
        cpu = time.process_time()
        seconds, uncounted_s = [*map(float, line.split()), 0.0][:2]
        seconds = await run.run(keys, seconds, uncounted_s)
        cpu = time.process_time() - cpu
        sys.stdout.write(json.dumps(_counted(run, seconds, cpu)) + "\n")
        sys.stdout.flush()


def _counted(run: Run, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    times = run.milliseconds or [0.0, 0.0]
    return {
        "calls": run.calls,
        "messages": run.messages,
        "p50_ms": statistics.median(times),
        "p99_ms": _p99(times),
        "delta_p50_ms": statistics.median(run.ages_ms or [0.0]),
        "others": dict(run.others),
        "wait_s": statistics.mean(run.waits_s or [0.0]),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def _retry_after_s(details: bytes) -> float:
    """Return when a refused client is to come again. Raises ValueError when it was not told."""
    retry = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Unpack(retry):
            return retry.retry_delay.ToMicroseconds() / 1_000_000
    raise ValueError("a call was refused without a time to come again")


def _p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)] if times else 0.0


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:6]))
