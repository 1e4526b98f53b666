"""What a process takes on: caps at their boundary and one past it, and requests that are read only
when their call was let in.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import h2.events
import pytest
from google.rpc import error_details_pb2, status_pb2
from structlog.testing import capture_logs

from hansard.v1 import agent_service_pb2
from hansard_server.repository.sql.store import SqlStore
from hansard_server.servicers.admission import (
    _LOOK_AT_ARRIVALS_S,
    SMALL_REQUEST_BYTES,
    Admission,
    RequestReader,
)
from hansard_server.servicers.interceptors import Call, Method
from tests.support.databases import Databases
from tests.support.http2 import RawConnection, frame, header, raw_connection
from tests.support.server import Failure, failure, make_settings, running_server
from tests.wire.test_interceptors import SERVICE, Bench, request, running_bench

MAX_CALLS = MAX_STREAMS = MAX_UPLOADS = 3


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_bench(max_calls=MAX_CALLS, patience_s=0.5) as bench:
        yield bench
        counts = admission(bench)
        await until(lambda: not counts.calls + counts.streams + counts.uploads)
        assert reader(bench)._slots._value == 2


def admission(bench: Bench) -> Admission:
    (found,) = (part for part in bench.chain if isinstance(part, Admission))
    return found


def reader(bench: Bench) -> RequestReader:
    (found,) = (part for part in bench.chain if isinstance(part, RequestReader))
    return found


def large(key: str) -> bytes:
    """Return a request with much in a field that no version knows."""
    # Field 31, length-delimited; the length in three groups of seven bits.
    unknown = bytes(2 * SMALL_REQUEST_BYTES)
    size = len(unknown)
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    return request(key) + b"\xfa\x01" + length + unknown


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - nobody says when
            await asyncio.sleep(0.005)


def check_refused(refused: Failure) -> None:
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "RATE_LIMIT_EXCEEDED"
    assert refused.retry_s is not None
    assert 0.5 <= refused.retry_s <= 1.5


async def test_calls_up_to_the_cap_are_served_and_one_more_is_refused(bench: Bench) -> None:
    calls = [
        asyncio.ensure_future(bench.call("unary_unary", request("slow"))) for _ in range(MAX_CALLS)
    ]
    await until(lambda: admission(bench).calls == MAX_CALLS)
    with capture_logs() as logs:
        for _ in range(5):
            check_refused(await failure(bench.call("unary_unary", request("ok"))))
    # One line for all of them.
    assert [entry["event"] for entry in logs] == ["calls are refused: more than may run at a time"]
    assert admission(bench).refused == 5
    bench.kinds.go_on.set()
    await asyncio.gather(*calls)
    await bench.call("unary_unary", request("ok"))


async def test_stream_counts_as_a_call_until_its_first_response(bench: Bench) -> None:
    streams = [bench.start("unary_stream", request("hang")) for _ in range(MAX_STREAMS)]
    for stream in streams:
        await stream.read()
    # As many calls as ever, though as many streams are open.
    await until(lambda: admission(bench).calls == 0)
    assert admission(bench).streams == MAX_STREAMS
    await bench.call("unary_unary", request("ok"))
    check_refused(await failure(bench.call("unary_stream", request("ok"))))
    streams.pop().cancel()
    await until(lambda: admission(bench).streams == MAX_STREAMS - 1)
    await bench.call("unary_stream", request("ok"))
    for stream in streams:
        stream.cancel()
    await until(lambda: admission(bench).streams == 0)


async def test_uploads_have_a_cap_of_their_own(bench: Bench) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield request("ok")
        await asyncio.Event().wait()

    start: Any = bench.channel.stream_unary(f"/{SERVICE}/stream_unary")
    uploads = [start(endless()) for _ in range(MAX_UPLOADS)]
    await until(lambda: admission(bench).uploads == MAX_UPLOADS)
    check_refused(await failure(start(endless())))
    await bench.call("unary_unary", request("ok"))
    for upload in uploads:
        upload.cancel()


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_call_that_fails_or_is_cancelled_gives_its_place_back(
    bench: Bench, kind: str
) -> None:
    for _ in range(2 * MAX_CALLS):
        await failure(bench.call(kind, request("busy")))
        await failure(bench.call(kind, request("bug")))
        await failure(bench.call(kind, b"\xff"))
        call = bench.start(kind, request("hang"))
        await asyncio.wait_for(bench.kinds.parked.wait(), 20)
        bench.kinds.parked.clear()
        call.cancel()
        await until(lambda: admission(bench).calls == 0)


async def test_request_that_does_not_arrive_ends_the_call(bench: Bench) -> None:
    async with raw_connection(bench.address) as connection:
        stream = await connection.start_call(f"{SERVICE}/unary_unary")
        await connection.send(stream, frame(b"", length=100))
        assert await status(connection, stream) == str(grpc.StatusCode.INVALID_ARGUMENT.value[0])
        text = header(connection.events, stream, "grpc-message")
        assert text == "the request did not arrive within 0.5 s"

        # None at all, or the stream's end in its place.
        stream = await connection.start_call(f"{SERVICE}/unary_unary")
        assert await status(connection, stream) == str(grpc.StatusCode.INVALID_ARGUMENT.value[0])
        stream = await connection.start_call(f"{SERVICE}/unary_unary")
        connection.h2.end_stream(stream)
        await connection.flush()
        assert await status(connection, stream) == str(grpc.StatusCode.INVALID_ARGUMENT.value[0])


async def test_few_large_requests_are_in_memory_at_a_time_and_small_ones_pass() -> None:
    async with running_bench(max_calls=100, patience_s=60, request_max_bytes=2_000_000) as bench:
        calls = [asyncio.ensure_future(bench.call("unary_unary", large("ok"))) for _ in range(10)]
        await asyncio.gather(*calls)

        async with raw_connection(bench.address) as connection:
            # Two send a part only, and are asked for the rest; a third is not.
            held = []
            for _ in range(3):
                stream = await connection.start_call(f"{SERVICE}/unary_unary")
                await connection.send(stream, frame(b"x" * 60_000, length=1_000_000))
                held.append(stream)
            await until(lambda: admission(bench).calls == 3)
            await connection.wait_for(
                h2.events.WindowUpdated, lambda event: event.stream_id == held[0]
            )
            assert reader(bench)._slots._value == 0
            assert not any(
                isinstance(event, h2.events.WindowUpdated) and event.stream_id == held[2]
                for event in connection.events
            )
            # Whoever waits has one ended that is slow to arrive.
            await bench.call("unary_unary", request("ok"))
            exhausted = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
            assert await status(connection, held[0]) == exhausted
        # Those whose client has gone give their places back.
        await until(lambda: admission(bench).calls == 0)
        assert reader(bench)._slots._value == 2
        assert not reader(bench)._readings


async def test_stream_gives_its_large_request_back_at_the_first_response() -> None:
    async with running_bench(max_calls=100, request_max_bytes=2_000_000) as bench:
        streams = []
        for _ in range(3):
            streams.append(bench.start("unary_stream", large("hang")))
            await streams[-1].read()
        await until(lambda: reader(bench)._slots._value == 2)
        for stream in streams:
            stream.cancel()
        await until(lambda: admission(bench).streams == 0)


async def status(connection: RawConnection, stream: int) -> str | None:
    await connection.wait_for(h2.events.StreamEnded, lambda event: event.stream_id == stream)
    return header(connection.events, stream, "grpc-status")


async def test_calls_that_nobody_has_looked_at_yet_count_too(bench: Bench) -> None:
    many = 40
    with grpc.insecure_channel(bench.address) as channel:
        make: Any = channel.unary_unary(f"/{SERVICE}/unary_unary")
        await asyncio.to_thread(make, request("ok"), wait_for_ready=True)
        calls = [make.future(request("ok")) for _ in range(many)]
        # Nobody looks, and they come; the next to come looks.
        arrivals, look_at = admission(bench)._arrivals, admission(bench)._looked_at
        look_at += _LOOK_AT_ARRIVALS_S
        assert arrivals is not None
        deadline = time.monotonic() + 30
        while arrivals.unfinished() < many or time.monotonic() < look_at:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # noqa: ASYNC251
        outcomes = await asyncio.to_thread(lambda: Counter(call.code() for call in calls))
    # One after another each finds that no call is being served.
    assert outcomes[grpc.StatusCode.OK] + outcomes[grpc.StatusCode.RESOURCE_EXHAUSTED] == many
    assert 1 <= outcomes[grpc.StatusCode.OK] <= 2 * MAX_CALLS
    # Then all is as before.
    await bench.call("unary_unary", request("ok"))


async def test_the_more_are_refused_the_later_they_come_again() -> None:
    clock = 0.0
    admission = Admission(max_calls=0, max_streams=1, max_uploads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hansard_server.servicers.admission.time.monotonic", lambda: clock)
        told: dict[int, list[float]] = {}
        for second, rate in enumerate([100, 100, 5_000, 5_000, 5_000, 100, 100]):
            told[second] = []
            for number in range(rate):
                clock = second + number / rate
                told[second].append(await refusal_of(admission))
    assert max(told[1]) <= 1.5
    # The first second of the many is over before that is known.
    assert max(told[2]) <= 1.5
    assert 5 < max(told[3]) <= 10.5
    assert 15 < max(told[4]) <= 30.5
    assert max(told[6]) <= max(told[4]) / 2
    assert all(min(times) >= 0.5 for times in told.values())


async def refusal_of(admission: Admission) -> float:
    """Return when a call is told to come again."""
    context = RefusedContext()
    method = Method(
        name="m",
        request_streaming=False,
        response_streaming=False,
        behavior=print,
        parse=bytes,
        probe=False,
        yields=False,
    )
    with pytest.raises(asyncio.CancelledError):
        await admission(Call(method=method, context=context, request=b""), never_proceed)
    retry = error_details_pb2.RetryInfo()
    ((_, details),) = context.trailing
    unpacked = [d for d in status_pb2.Status.FromString(details).details if d.Unpack(retry)]
    assert unpacked
    return retry.retry_delay.ToMicroseconds() / 1_000_000


class RefusedContext:
    """A call's context that only keeps what it ended with."""

    trailing: Any = ()

    async def abort(self, _code: object, _message: str, trailing: Any) -> None:
        self.trailing = trailing
        raise asyncio.CancelledError


async def never_proceed(_call: Call) -> None:
    raise AssertionError("it was let in")


async def test_every_call_of_a_burst_is_served_or_told_when_to_come_again(
    databases: Databases, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path, databases.migrated("sqlite"), process_max_calls=50)
    async with running_server(settings) as running:
        # They arrive together, while nobody looks.
        calls: list[Any] = [
            running.agents.ListAgents(agent_service_pb2.ListAgentsRequest()) for _ in range(4_000)
        ]
        await asyncio.sleep(0)
        time.sleep(2)  # noqa: ASYNC251 - that is what is tested
        codes = Counter([await call.code() for call in calls])
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes[grpc.StatusCode.OK] >= 50


async def test_the_store_knows_of_the_calls(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Callable[[], int]] = []
    monkeypatch.setattr(SqlStore, "expect", lambda _, crowd: told.append(crowd))
    async with running_server(make_settings(tmp_path, databases.migrated("sqlite"))) as running:
        (crowd,) = told
        assert crowd() == 0
        hold = asyncio.Event()
        read = SqlStore.read

        async def read_later(store: SqlStore, query: Any) -> Any:
            await hold.wait()
            return await read(store, query)

        monkeypatch.setattr(SqlStore, "read", read_later)
        list_ = running.agents.ListAgents
        calls = [list_(agent_service_pb2.ListAgentsRequest()) for _ in range(20)]
        await until(lambda: crowd() >= len(calls))
        hold.set()
        await asyncio.gather(*calls)
