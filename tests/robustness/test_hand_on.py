"""SIGTERM in the middle of many turns: the next server ends all of them, as if nothing had been."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from hansard.v1 import artifact_service_pb2, turn_pb2
from tests.support.invariants import check_store
from tests.support.server import Running, failure, open_channel, serve_process
from tests.support.talk import Talk, check_turn, items, output, stored

TURNS = 20
SCRIPT = [
    {"thinking": {"content": "I think about it.", "delta_count": 8, "pause_ms": 60}},
    {"tool_call": {"name": "t", "input": {}, "output": {}, "pause_ms": 300}},
    {"agent_output": {"content": "That is the answer.", "delta_count": 8, "pause_ms": 60}},
]


async def test_twenty_turns_outlast_a_sigterm(store_url: str, tmp_path: Path) -> None:
    arguments = (
        *("--listen", "127.0.0.1:0", "--data-dir", str(tmp_path), "--store", store_url),
        *("--set", "lease_s=5", "--set", "drain_deadline_s=8"),
    )
    sessions = [f"s{number}" for number in range(TURNS)]
    server: Any = None
    with serve_process(*arguments) as process:
        address = str((await asyncio.to_thread(process.wait_for, "serving"))["address"])
        async with open_channel(address) as channel:
            first = await Talk(Running(server, channel), session_key="s0").begin(SCRIPT)
            for name in sessions[1:]:
                await first.another(name).open_session()
            for name in sessions:
                assert items(await first.another(name).send(detach=True, request_id="r")) == [
                    "event"
                ]
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
        handed_on = process.log.count('"turn_handed_on"')
    assert handed_on > 0, "no turn was in its middle"
    with serve_process(*arguments) as process:
        address = str((await asyncio.to_thread(process.wait_for, "serving"))["address"])
        async with open_channel(address) as channel:
            first = Talk(Running(server, channel))
            for name in sessions:
                responses = await first.another(name).send(request_id="r")
                check_turn(responses)
                turn = responses[-1].turn_end.turn
                assert (turn.status, turn.attempt) == (turn_pb2.TURN_STATUS_COMPLETED, 1)
                kinds = [event.WhichOneof("payload") for event in stored(responses)]
                assert kinds == [
                    "input_message",
                    "thinking",
                    "tool_input",
                    "tool_output",
                    "agent_output",
                ]
    check_store(store_url, tmp_path)


async def test_sigterm_with_everything_under_way(store_url: str, tmp_path: Path) -> None:
    arguments = (
        *("--listen", "127.0.0.1:0", "--data-dir", str(tmp_path), "--store", store_url),
        *("--set", "lease_s=5", "--set", "drain_deadline_s=6"),
    )
    server: Any = None
    with serve_process(*arguments) as process:
        address = str((await asyncio.to_thread(process.wait_for, "serving"))["address"])
        async with open_channel(address) as channel, open_channel(address) as parked_channel:
            talk = await Talk(Running(server, channel)).begin()
            for _ in range(10):
                await talk.append(*[output("x" * 1_000_000) for _ in range(3)])
            _, turn_id = await talk.hold()
            waiting = talk.stream("B", request_id="b")
            await anext(aiter(waiting))
            watch = talk.watch(32)
            assert items([await anext(aiter(watch))]) == ["caught_up"]
            # 30 MB wait for this one, and it does not read.
            parked = Talk(Running(server, parked_channel)).watch()
            await anext(aiter(parked))
            uploading = asyncio.ensure_future(failure(_half_an_upload(talk)))
            await asyncio.sleep(0)
            process.send(signal.SIGTERM)
            for stream in (waiting, watch):
                ended = await failure(_rest(stream))
                assert ended.reason == "SERVER_SHUTTING_DOWN"
                assert ended.metadata["sequence"] == "32"
            assert (await uploading).code is grpc.StatusCode.UNAVAILABLE
            assert await asyncio.to_thread(process.wait) == 0
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    with serve_process(*arguments) as process:
        address = str((await asyncio.to_thread(process.wait_for, "serving"))["address"])
        async with open_channel(address) as channel:
            talk = Talk(Running(server, channel))
            responses = await talk.send("B", request_id="b")
            assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
            held, _ = await talk.turns()
            assert (held.id, held.status) == (turn_id, turn_pb2.TURN_STATUS_COMPLETED)
            events = await talk.events()
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert events[31].turn_id == turn_id
    check_store(store_url, tmp_path)


async def _half_an_upload(talk: Talk) -> Any:
    make = artifact_service_pb2.UploadArtifactsRequest

    async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
        yield make(start=artifact_service_pb2.UploadStart(**talk.keys))
        yield make(header=artifact_service_pb2.UploadHeader(filename="a"))
        yield make(chunk=b"x" * 100_000)
        await asyncio.Event().wait()

    return await talk.server.artifacts.UploadArtifacts(parts())


async def _rest(stream: Any) -> list[Any]:
    return [response async for response in stream]
