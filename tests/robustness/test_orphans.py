"""A turn that an agent's call began ends, though the server dies when it has ended the caller's."""

from __future__ import annotations

import asyncio
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import agent_pb2, agent_service_pb2, session_service_pb2, turn_pb2
from hansard_server import failpoints
from tests.support.invariants import check_store
from tests.support.server import Running, open_channel, serve_process
from tests.support.talk import Talk, model

ENDS_WITHIN_S = 20
"""Much less than the agent's pause."""
SLOW = [{"thinking": {"content": "hm"}}, *[{"pause_ms": 60_000}] * 5]
CALL = {"tool_call": {"name": "helper", "input": {"message": "Count the eggs."}}}


async def begin(server: Running) -> Talk:
    """Create an agent that calls another one, which takes its time; begin a turn."""
    await Talk(server, "helper").begin(SLOW)
    helper = agent_pb2.ToolConfiguration()
    helper.sub_agent.sub_agent_configuration.agent_key = "helper"
    await server.agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(
            key="agent", name="Agent", model=model([CALL]), tool_configurations={"helper": helper}
        )
    )
    return await Talk(server).open_session()


async def child_of(server: Running) -> Talk:
    """Return the talk in the session of the call, as soon as its agent has said something."""
    request = session_service_pb2.ListSessionsRequest(agent_key="helper")
    async with asyncio.timeout(60):
        while True:
            for session in (await server.sessions.ListSessions(request)).sessions:
                if session.key != "s" and session.last_sequence > 1:
                    return Talk(server, "helper", session.key)
            await asyncio.sleep(0.05)


async def test_turn_of_a_call_ends_after_a_crash(store_url: str, tmp_path: Path) -> None:
    arguments = (
        *("--listen", "127.0.0.1:0", "--data-dir", str(tmp_path), "--store", store_url),
        *("--set", "lease_s=1"),
    )
    server: Any = None
    armed = {failpoints.SERVING_VARIABLE: "turn.ended"}
    with serve_process(*arguments, environment=armed) as process:
        entry = await asyncio.to_thread(process.wait_for, "serving")
        async with open_channel(str(entry["address"])) as channel:
            talk = await begin(Running(server, channel))
            await talk.send(detach=True)
            child = await child_of(talk.server)
            (turn,) = await talk.turns()
            with pytest.raises(grpc.aio.AioRpcError):
                await talk.release(turn.id)
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
    with serve_process(*arguments) as process:
        entry = await asyncio.to_thread(process.wait_for, "serving")
        async with open_channel(str(entry["address"])) as channel:
            again = Running(server, channel)
            (ended,) = await Talk(again).turns()
            assert ended.status == turn_pb2.TURN_STATUS_INTERRUPTED
            below = Talk(again, "helper", child.session_key)
            async with asyncio.timeout(ENDS_WITHIN_S), aclosing(aiter(below.watch())) as events:
                async for response in events:
                    if response.event.HasField("session_interrupted"):
                        break
            (turn,) = await below.turns()
            assert turn.status == turn_pb2.TURN_STATUS_INTERRUPTED
    check_store(store_url, tmp_path)
