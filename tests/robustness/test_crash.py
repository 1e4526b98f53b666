"""A server killed in mid turn: nothing acknowledged is lost, and no session stays busy."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hansard.v1 import event_pb2, turn_pb2
from tests.support.invariants import check_store
from tests.support.server import Running, ServeProcess, open_channel, serve_process
from tests.support.talk import Talk, items, model, rating, stored

LAST = {"agent_output": {"content": "done"}}
SLOW = {"tool_call": {"name": "slow", "input": {}, "output": {}, "pause_ms": 20_000}}


@asynccontextmanager
async def serving(folder: Path, store_url: str) -> AsyncIterator[tuple[ServeProcess, Talk]]:
    """Give a server as a process, and a talk with it."""
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", store_url)
    with serve_process(*arguments, "--set", "lease_s=1") as process:
        address = str(process.wait_for("serving")["address"])
        async with open_channel(address) as channel:
            server: Any = None
            yield process, Talk(Running(server, channel))


ROUNDS = 3


async def test_killed_turns_go_on(store_url: str, tmp_path: Path) -> None:
    acknowledged: list[str] = []
    async with serving(tmp_path, store_url) as (process, talk):
        await talk.begin([{"thinking": {"content": "hm"}}, SLOW, LAST])
        await _begin_and_kill(process, talk, acknowledged, "turn-0")
    for number in range(1, ROUNDS):
        async with serving(tmp_path, store_url) as (process, talk):
            await _check_ended(talk, f"turn-{number - 1}")
            await _begin_and_kill(process, talk, acknowledged, f"turn-{number}")
    async with serving(tmp_path, store_url) as (process, talk):
        await _check_ended(talk, f"turn-{ROUNDS - 1}")
        events = await talk.events()
        assert {event.id for event in events} >= set(acknowledged)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    check_store(store_url, tmp_path)


async def test_turn_that_kills_every_server_fails(store_url: str, tmp_path: Path) -> None:
    async with serving(tmp_path, store_url) as (process, talk):
        await talk.begin([{"pause_ms": 60_000}, LAST])
        assert items(await talk.send("A", request_id="a", detach=True)) == ["event"]
        process.send(signal.SIGKILL)
        process.wait()
    for attempt in range(2, 5):
        async with serving(tmp_path, store_url) as (process, talk):
            while (await talk.turns())[0].attempt < attempt:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
            process.send(signal.SIGKILL)
            process.wait()
    async with serving(tmp_path, store_url) as (process, talk):
        turn = (await talk.send("A", request_id="a"))[-1].turn_end.turn
        assert turn.status == turn_pb2.TURN_STATUS_FAILED
        assert b"AGENT_PROCESSING_FAILED" in turn.error.details[0].value
        await talk.set_model(model())
        assert items(await talk.send("B"))[-1] == "turn_end"
    check_store(store_url, tmp_path)


async def test_waiting_inputs_outlast_a_crash(store_url: str, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    async with serving(tmp_path, store_url) as (process, talk):
        await talk.begin([SLOW, LAST])
        stream = talk.stream("a", request_id="a")
        async for response in stream:
            if response.event.HasField("tool_input"):
                break
        for name in names[1:]:
            assert items(await talk.send(name, request_id=name, detach=True)) == ["queued"]
        await talk.set_model(model([LAST]))
        process.send(signal.SIGKILL)
        process.wait()
    async with serving(tmp_path, store_url) as (process, talk):
        for name in names:
            responses = await talk.send(name, request_id=name)
            assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
        turns = await talk.turns()
        assert [t.input.input_message.messages[0].text.content for t in turns] == names
        # Of the first one's script there was nothing left after its call.
        assert [t.first_sequence for t in turns] == [1, 4, 6]
    check_store(store_url, tmp_path)


async def _begin_and_kill(
    process: ServeProcess, talk: Talk, acknowledged: list[str], name: str
) -> None:
    """Bring a turn as far as its tool call, put something behind it, and kill the server."""
    stream = talk.stream(name, request_id=name)
    async for response in stream:
        if response.HasField("event"):
            acknowledged.append(response.event.id)
        if response.event.HasField("tool_input"):
            break
    (place,) = await talk.append(rating(), request_id=f"rating-of-{name}")
    assert place == len(await talk.events())
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


async def _check_ended(talk: Talk, name: str) -> None:
    """Join the killed turn by its request_id: it goes on, its call closed, and ends."""
    again = await talk.send(name, request_id=name)
    turn = again[-1].turn_end.turn
    assert (turn.status, turn.attempt) == (turn_pb2.TURN_STATUS_COMPLETED, 1)
    events = stored(again)
    assert [event.WhichOneof("payload") for event in events] == [
        "input_message",
        "thinking",
        "tool_input",
        "tool_output",
        "agent_output",
    ]
    assert events[3].tool_output.outcome == event_pb2.TOOL_OUTCOME_INTERRUPTED
    assert events[3].tool_output.tool_call_id == events[2].tool_input.tool_call_id
    (place,) = await talk.append(rating(), request_id=f"rating-of-{name}")
    assert place == events[2].sequence + 1
