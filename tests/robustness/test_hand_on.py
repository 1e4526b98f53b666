"""SIGTERM in the middle of many turns: the next server ends all of them, as if nothing had been."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from hansard.v1 import turn_pb2
from tests.support.invariants import check_store
from tests.support.server import Running, open_channel, serve_process
from tests.support.talk import Talk, check_turn, items, stored

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
    check_store(store_url)
