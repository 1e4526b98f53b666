"""WatchEvents: ordered, unique, complete, resumable, and it says when it has caught up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import event_service_pb2, session_service_pb2
from tests.support.server import (
    Running,
    failure,
    make_settings,
    open_channel,
    running_server,
)
from tests.support.talk import (
    TWENTY_DELTAS,
    Talk,
    items,
    joined_deltas,
    output,
    rating,
    stored,
)

PAGE = 100
SEED = 11


async def seen_up_to(watch: Any, last_sequence: int) -> list[Any]:
    """Return what a watch delivers up to a sequence, and end it."""
    responses = []
    async for response in watch:
        responses.append(response)
        if response.event.sequence == last_sequence:
            break
    watch.cancel()
    return responses


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1])
async def test_stored_events_then_live_ones_from_any_cursor(hansard: Running, count: int) -> None:
    talk = await Talk(hansard).begin()
    for start in range(0, count, 50):
        await talk.append(*(rating(f"{n}") for n in range(start, min(start + 50, count))))
    for cursor in sorted({0, count // 2, max(count - 1, 0), count}):
        watch = talk.watch(cursor)
        source = aiter(watch)
        caught_up = [await anext(source) for _ in range(count - cursor + 1)]
        assert items(caught_up) == ["event"] * (count - cursor) + ["caught_up"]
        assert [e.sequence for e in stored(caught_up)] == list(range(cursor + 1, count + 1))
        assert caught_up[0].session_uid == talk.uid
        assert [bool(r.session_uid) for r in caught_up[1:]] == [False] * (len(caught_up) - 1)
        assert caught_up[-1].sequence == count
        watch.cancel()
    watch = talk.watch(count)
    source = aiter(watch)
    assert items([await anext(source)]) == ["caught_up"]
    await talk.append(rating(), rating())
    live = [await anext(source) for _ in range(2)]
    assert [r.sequence for r in live] == [count + 1, count + 2]
    assert stored(live) == (await talk.events(after_sequence=count))
    watch.cancel()


async def test_cursor_ahead_of_the_log(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(rating())
    refused = await failure(_all(talk.watch(2)))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.OUT_OF_RANGE,
        "CURSOR_OUT_OF_RANGE",
    )
    assert refused.metadata["last_sequence"] == "1"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"session_key": "no"}, "SESSION_NOT_FOUND"),
        ({"agent_key": "no"}, "AGENT_NOT_FOUND"),
        ({"session_uid": "foreign"}, "SESSION_NOT_FOUND"),
        ({"after_sequence": -1}, "INVALID_REQUEST"),
    ],
)
async def test_watch_of_what_is_not_there(
    hansard: Running, fields: dict[str, Any], reason: str
) -> None:
    talk = await Talk(hansard).begin()
    request = event_service_pb2.WatchEventsRequest(**{**talk.keys, **fields})
    assert (await failure(_all(hansard.events.WatchEvents(request)))).reason == reason


async def test_deletion_ends_the_watch(hansard: Running) -> None:
    talk = await Talk(hansard).begin([{"pause_ms": 60_000}, {"agent_output": {"content": "x"}}])
    running = talk.stream()
    await anext(aiter(running))
    watch = talk.watch(1)
    assert items([await anext(aiter(watch))]) == ["caught_up"]
    await hansard.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(**talk.keys))
    for stream in (watch, running):
        refused = await failure(_all(stream))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.NOT_FOUND,
            "SESSION_NOT_FOUND",
        )
    # Another incarnation is another record.
    again = await Talk(hansard).open_session()
    assert again.uid != talk.uid
    assert (await failure(_all(talk.watch(session_uid=talk.uid)))).reason == "SESSION_NOT_FOUND"
    assert await again.events() == []


async def test_drain_ends_the_watch_with_a_place_to_go_on_from(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(rating(), rating())
    watch = talk.watch()
    source = aiter(watch)
    for _ in range(3):
        await anext(source)
    stopping = asyncio.create_task(hansard.server.stop())
    refused = await failure(_all(source))
    await stopping
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "SERVER_SHUTTING_DOWN",
    )
    assert refused.metadata == {"sequence": "2", "session_uid": talk.uid}
    assert refused.retry_s is not None


async def test_drain_wakes_who_waits(store_url: str, tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data", store_url, poll_floor_s=600.0)
    async with running_server(settings) as running:
        talk = await Talk(running).begin()
        watch = talk.watch()
        source = aiter(watch)
        assert items([await anext(source)]) == ["caught_up"]
        stopping = asyncio.create_task(running.server.stop())
        async with asyncio.timeout(30):
            refused = await failure(_all(source))
        await stopping
    assert refused.reason == "SERVER_SHUTTING_DOWN"


async def test_watcher_that_misses_a_part_of_the_news_reads_the_store(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    watch = talk.watch()
    source = aiter(watch)
    assert items([await anext(source)]) == ["caught_up"]
    # More at once than is kept for those who wait.
    await talk.append(*(rating() for _ in range(200)))
    seen = [(await anext(source)).event.sequence for _ in range(200)]
    assert seen == list(range(1, 201))
    watch.cancel()


async def test_watcher_sees_the_turn_as_the_sender_does(hansard: Running) -> None:
    script = [{"agent_output": {"deltas": list("abcdefgh"), "pause_ms": 15}}]
    talk = await Talk(hansard).begin(script)
    watch = talk.watch(include_deltas=True)
    source = aiter(watch)
    assert items([await anext(source)]) == ["caught_up"]
    sending = asyncio.create_task(talk.send())
    responses = []
    async for response in source:
        responses.append(response)
        if response.HasField("turn_end"):
            break
    watch.cancel()
    sent = await sending
    assert stored(responses) == stored(sent)
    assert joined_deltas(responses) == joined_deltas(sent)
    assert items(responses)[-1] == "turn_end"
    assert responses[-1].turn_end == sent[-1].turn_end


async def test_watcher_that_comes_late_gets_the_open_text_from_its_start(hansard: Running) -> None:
    script = [{"agent_output": {"deltas": list("abcdefgh"), "pause_ms": 30}}]
    talk = await Talk(hansard).begin(script)
    running = talk.stream()
    source = aiter(running)
    for _ in range(4):
        await anext(source)
    responses = await seen_up_to(talk.watch(include_deltas=True), 2)
    texts = joined_deltas(responses)
    assert texts == {stored(responses)[-1].id: b"abcdefgh"}
    assert items(responses)[:2] == ["event", "caught_up"]
    running.cancel()


async def test_stored_texts_are_not_told_as_deltas(hansard: Running) -> None:
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    await talk.send()
    assert items(await seen_up_to(talk.watch(include_deltas=True), 3)) == ["event"] * 3


async def test_random_cursors_and_reconnects_see_every_event_once(  # noqa: C901
    hansard: Running,
) -> None:
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    rng = random.Random(SEED)
    total = 8 * 3 + 6 * 3 * 3

    async def follow() -> list[int]:
        cursor = 0
        got: list[int] = []
        while cursor < total:
            budget = rng.randrange(1, 25)
            watch = talk.watch(cursor, include_deltas=rng.random() < 0.5)
            async for response in watch:
                if response.HasField("event"):
                    assert response.sequence == response.event.sequence
                    got.append(response.event.sequence)
                    cursor = response.event.sequence
                budget -= 1
                if budget == 0 or cursor == total:
                    break
            watch.cancel()
        return got

    async def speak() -> None:
        for number in range(8):
            await talk.send(f"{number}")

    async def write(writer: int) -> None:
        for number in range(6):
            await talk.append(*(rating(f'"{writer}/{number}"') for _ in range(3)))

    watchers = [asyncio.create_task(follow()) for _ in range(6)]
    await asyncio.gather(speak(), *(write(writer) for writer in range(3)))
    for got in await asyncio.gather(*watchers):
        assert got == list(range(1, total + 1))
    assert [event.sequence for event in await talk.events()] == list(range(1, total + 1))


# Slow readers -------------------------------------------------------------------------------------


async def test_slow_reader_gets_fewer_and_larger_deltas(plain: Running) -> None:
    deltas = 1_500
    script = [{"agent_output": {"content": "x" * 40_000, "delta_count": deltas, "pause_ms": 1}}]
    talk = await Talk(plain).begin(script)
    # So small a window is full after a part of the deltas.
    window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024)]
    async with open_channel(plain.server.address, *window) as channel:
        slow = Talk(Running(plain.server, channel))
        watch = slow.watch(include_deltas=True)
        source = aiter(watch)
        assert items([await anext(source)]) == ["caught_up"]
        # The reader stops; the turn does not.
        fast = await talk.send()
        assert items(fast)[-1] == "turn_end"
        responses = []
        async for response in source:
            responses.append(response)
            if response.HasField("turn_end"):
                break
        watch.cancel()
    assert stored(responses) == stored(fast)
    assert joined_deltas(responses) == joined_deltas(fast)
    shown = [r.delta for r in responses if r.HasField("delta")]
    assert len(shown) < items(fast).count("delta") / 2
    assert max(len(delta.text) for delta in shown) > 10 * 40_000 / deltas


async def test_reader_that_stopped_is_ended_with_a_place_to_go_on_from(
    store_url: str, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path / "data", store_url, stall_s=0.5)
    async with running_server(settings) as running:
        talk = await Talk(running).begin()
        for _ in range(8):
            await talk.append(*(output("x" * 1_000_000) for _ in range(3)))
        idle = talk.watch(24)
        assert items([await anext(aiter(idle))]) == ["caught_up"]
        async with open_channel(running.server.address) as channel:
            stopped = Talk(Running(running.server, channel))
            watch = stopped.watch()
            source = aiter(watch)
            first = await anext(source)
            # It holds nothing any more while its client still says nothing.
            async with asyncio.timeout(30):
                while running.server._calls.running > 1:  # noqa: ASYNC110 - nobody says when
                    await asyncio.sleep(0.02)
            seen = [first.event.sequence]
            refused = await failure(_read_into(seen, source))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_STALLED")
        assert refused.retry_s is not None
        assert refused.metadata["session_uid"] == talk.uid
        place = int(refused.metadata["sequence"])
        # What was taken has come; from there on nothing is missing and nothing comes twice.
        assert seen[: place or 1] == list(range(1, (place or 1) + 1))
        rest = await seen_up_to(talk.watch(seen[-1]), 24)
        assert seen + [r.event.sequence for r in rest if r.HasField("event")] == list(range(1, 25))
        # One that has nothing to read is not stalled.
        await talk.append(rating())
        assert (await anext(aiter(idle))).event.sequence == 25
        idle.cancel()


async def _read_into(seen: list[int], source: AsyncIterator[Any]) -> None:
    async for response in source:
        if response.HasField("event"):
            seen.append(response.event.sequence)  # noqa: PERF401 - what came before an error counts


async def test_reader_that_stopped_holds_no_connection(plain: Running) -> None:
    talk = await Talk(plain).begin()
    large = [output("x" * 1_000_000) for _ in range(3)]
    for _ in range(8):
        await talk.append(*large)
    async with open_channel(plain.server.address) as channel:
        stopped = Talk(Running(plain.server, channel))
        # 24 MB wait for each of them, and none reads.
        watches = [stopped.watch() for _ in range(40)]
        for watch in watches:
            await anext(aiter(watch))
        # There are far fewer connections to the database: if they held any, this would hang.
        places = await asyncio.gather(*(talk.append(rating()) for _ in range(50)))
        assert sorted(place for (place,) in places) == list(range(25, 75))
        assert len(await talk.events()) == 74
        for watch in watches:
            watch.cancel()


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [response async for response in stream]
