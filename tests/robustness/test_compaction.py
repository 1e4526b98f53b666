"""A server killed while a conversation is summarised: all of it happens, or nothing has."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from hansard.v1 import event_pb2, event_service_pb2, turn_pb2
from hansard_server import failpoints
from tests.support.invariants import check_store
from tests.support.server import Running, open_channel, serve_process
from tests.support.talk import Talk, items

# The second batch of commands ends the turn: the first has accepted it.
PLACES = ("batch.locked", "batch.decided", "batch.written")
ANSWER = [{"agent_output": {"content": "An answer."}}]
SUMMARY = [{"pause_ms": 300}, {"agent_output": {"content": "They spoke."}}]


def request(talk: Talk) -> Any:
    compact = event_service_pb2.SendEventRequest(
        compact=turn_pb2.Compact(), request_id="c", **talk.keys
    )
    return talk.server.events.SendEvent(compact)


async def drain(stream: Any) -> list[Any]:
    return [response async for response in stream]


@pytest.mark.parametrize("place", [*PLACES, "while the model works"])
async def test_a_killed_compaction_happens_once(store_url: str, tmp_path: Path, place: str) -> None:
    arguments = [
        *("--listen", "127.0.0.1:0", "--data-dir", str(tmp_path)),
        *("--store", store_url, "--set", "lease_s=1"),
    ]
    server: Any = None
    with serve_process(*arguments) as process:
        address = str(process.wait_for("serving")["address"])
        async with open_channel(address) as channel:
            talk = Talk(Running(server, channel))
            await talk.begin(ANSWER, summary=SUMMARY)
            await talk.send("One")
            process.send(signal.SIGTERM)
        assert process.wait() == 0
    armed = {failpoints.SERVING_VARIABLE: f"{place}@2"} if place in PLACES else {}
    with serve_process(*arguments, environment=armed) as process:
        address = str(process.wait_for("serving")["address"])
        async with open_channel(address) as channel:
            talk = Talk(Running(server, channel))
            running = asyncio.ensure_future(drain(request(talk)))
            if not armed:
                await talk.until_turns(2)
                process.send(signal.SIGKILL)
            await asyncio.gather(running, return_exceptions=True)
        assert process.wait() == -signal.SIGKILL
    with serve_process(*arguments) as process:
        address = str(process.wait_for("serving")["address"])
        async with open_channel(address) as channel:
            talk = Talk(Running(server, channel))
            responses = await drain(request(talk))
            assert items(responses) == ["event", "turn_end"]
            turn = responses[-1].turn_end.turn
            assert turn.status == turn_pb2.TURN_STATUS_COMPLETED
            events = await talk.events(include_hidden=True)
            kinds = [event.WhichOneof("payload") for event in events]
            assert kinds == ["input_message", "agent_output", "compaction"]
            reasons = [event.hide_reason for event in events]
            hidden = event_pb2.HIDE_REASON_COMPACTION
            assert reasons == [hidden, hidden, event_pb2.HIDE_REASON_UNSPECIFIED]
            process.send(signal.SIGTERM)
        assert process.wait() == 0
    check_store(store_url, tmp_path)
