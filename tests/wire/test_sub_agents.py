"""Sub-agents: a call runs another agent in a session of its own, and both know of each other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    event_pb2,
    session_pb2,
    session_service_pb2,
    turn_pb2,
)
from tests.support.actions import TOOLS, answer, approve, ask, kinds_of, output, pending
from tests.support.invariants import check_store
from tests.support.server import Running, failure, make_settings, running_server
from tests.support.talk import Talk, check_turn, model, stored

COMPLETED = turn_pb2.TURN_STATUS_COMPLETED
INTERRUPTED = turn_pb2.TURN_STATUS_INTERRUPTED
DONE = {"agent_output": {"content": "Done."}}
SLOW = [{"thinking": {"content": "hm"}}, {"pause_ms": 60_000}, DONE]


@pytest.fixture
async def quick(store_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """Give a server with sub-agents of two levels at most, and three calls a turn."""
    settings = make_settings(
        *(tmp_path / "data", store_url), sub_agent_max_depth=2, sub_agent_max_calls=3, lease_s=2
    )
    async with running_server(settings) as running:
        yield running
    check_store(store_url, tmp_path / "data")


def task(
    message: str = "Count the eggs.", tool: str = "helper", **arguments: Any
) -> dict[str, Any]:
    """Return a call of a sub-agent."""
    return {"tool_call": {"name": tool, "input": {"message": message, **arguments}}}


async def create(
    server: Running, key: str, script: list[dict[str, Any]], **tools: dict[str, Any]
) -> None:
    """Create an agent; its tools are sub-agents of these configurations, or what else they say."""
    made = {
        name: json_format.ParseDict(
            tool if {"client", "sub_agent"} & tool.keys() else sub_agent(tool),
            agent_pb2.ToolConfiguration(),
        )
        for name, tool in tools.items()
    }
    await server.agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(
            key=key, name=key, model=model(script), tool_configurations=made
        )
    )


def sub_agent(configuration: dict[str, Any]) -> dict[str, Any]:
    return {"sub_agent": {"sub_agent_configuration": configuration}}


def outputs(responses: Any) -> list[dict[str, Any]]:
    """Return what the calls answered."""
    return [
        json.loads(event.tool_output.tool_output_json)
        for event in stored(responses)
        if event.HasField("tool_output")
    ]


async def sessions_of(server: Running, agent_key: str) -> list[session_pb2.Session]:
    page = await server.sessions.ListSessions(
        session_service_pb2.ListSessionsRequest(agent_key=agent_key)
    )
    return list(page.sessions)


async def until_status(talk: Talk, status: int) -> turn_pb2.Turn:
    """Return the newest turn as soon as it has the status."""
    async with asyncio.timeout(60):
        while True:
            turns = await talk.turns()
            if turns and turns[-1].status == status:
                return turns[-1]
            await asyncio.sleep(0.05)


async def child_of(server: Running, agent_key: str = "helper") -> Talk:
    """Return the talk in the first session of an agent, as soon as it has said something."""
    async with asyncio.timeout(60):
        while True:
            found = await sessions_of(server, agent_key)
            if found and found[0].last_sequence > 1:
                return Talk(server, agent_key, found[0].key)
            await asyncio.sleep(0.05)


async def test_call_runs_another_agent_in_a_session_of_its_own(hansard: Running) -> None:
    await create(hansard, "helper", [{"agent_output": {"content": "Twelve eggs."}}])
    helper = {"agent_key": "helper", "session_metadata": {"for": "eggs"}}
    await create(hansard, "agent", [task(session_tti_minutes=5), DONE], helper=helper)
    talk = await Talk(hansard).open_session()
    responses = await talk.send()
    check_turn(responses)
    assert kinds_of(responses)[1:] == ["tool_input", "tool_output COMPLETED", "agent_output"]
    (said,) = outputs(responses)
    (child,) = await sessions_of(hansard, "helper")
    other = Talk(hansard, "helper", child.key)
    (turn,) = await other.turns()
    assert said == {
        "agent_key": "helper",
        "session_key": child.key,
        "turn_id": turn.id,
        "answer": "Twelve eggs.",
    }
    assert turn.input.input_message.messages[0].text.content == "Count the eggs."
    call_id = stored(responses)[1].tool_input.tool_call_id
    assert child.parent == session_pb2.SessionParent(
        agent_key="agent", session_key="s", session_uid=talk.uid, tool_call_id=call_id, depth=1
    )
    assert dict(child.metadata) == {"for": "eggs"}
    assert child.tti_minutes == 5
    # Each call has a session of its own.
    await talk.send()
    assert len(await sessions_of(hansard, "helper")) == 2


async def test_sessions_of_the_other_modes(hansard: Running) -> None:
    await create(hansard, "helper", [DONE])
    script = [task(tool="same"), task(tool="same"), task(tool="any"), DONE]
    mode = {"agent_key": "helper", "session_mode": "SUB_AGENT_SESSION_MODE_PERSISTENT"}
    any_mode = {"agent_key": "helper", "session_mode": "SUB_AGENT_SESSION_MODE_LLM_CONTROLLED"}
    await create(hansard, "agent", script, same=mode, any=any_mode)
    talk = await Talk(hansard).open_session()
    first, second, third = (said["session_key"] for said in outputs(await talk.send()))
    assert first == second != third
    assert [t.status for t in await Talk(hansard, "helper", first).turns()] == [COMPLETED] * 2

    await talk.set_model(model([task(tool="any", session_key=third), DONE]))
    assert outputs(await talk.send())[0]["session_key"] == third
    assert len(await Talk(hansard, "helper", third).turns()) == 2
    # Sessions of others are not to be had, nor by tools whose sessions the model does not name.
    await Talk(hansard, "helper", "mine").open_session()
    calls = [
        task(tool="any", session_key="mine"),
        task(tool="any", session_key="none"),
        task(tool="same", session_key=first),
    ]
    await talk.set_model(model([*calls, DONE]))
    assert all("error" in said for said in outputs(await talk.send()))
    assert await Talk(hansard, "helper", "mine").turns() == []


async def test_failures_of_a_sub_agent_are_told(hansard: Running) -> None:
    await create(hansard, "failing", [{"fail": "The hens are gone."}])
    await create(hansard, "slow", SLOW)
    tools = {
        "failing": {"agent_key": "failing"},
        "slow": {"agent_key": "slow", "timeout": "0.5s"},
        "nobody": {"agent_key": "nobody"},
    }
    script = [*(task(tool=name) for name in tools), DONE]
    await create(hansard, "agent", script, **tools)
    responses = await (await Talk(hansard).open_session()).send()
    assert kinds_of(responses)[4:] == [
        *("tool_output FAILED", "tool_output TIMED_OUT", "tool_output FAILED", "agent_output")
    ]
    failed, late, unknown = outputs(responses)
    assert "The hens are gone." in failed["error"]
    assert "0.5 s" in late["error"]
    assert "no such agent" in unknown["error"]
    slow = await child_of(hansard, "slow")
    assert (await slow.turns())[0].status == INTERRUPTED


async def test_depth_is_limited(quick: Running) -> None:
    await create(quick, "agent", [task(tool="me"), DONE], me={"agent_key": "agent"})
    talk = await Talk(quick).open_session()
    responses = await talk.send()
    assert responses[-1].turn_end.turn.status == COMPLETED
    sessions = await sessions_of(quick, "agent")
    assert sorted(session.parent.depth for session in sessions) == [0, 1, 2]
    deepest = next(session for session in sessions if session.parent.depth == 2)
    events = await Talk(quick, "agent", deepest.key).events(types=["tool_output"])
    assert "levels deep" in events[0].tool_output.tool_output_json


async def test_calls_of_a_turn_are_limited(quick: Running) -> None:
    await create(quick, "helper", [DONE])
    script = [task(), task(), DONE, task(), task(), DONE]
    await create(quick, "agent", script, helper={"agent_key": "helper"})
    talk = await Talk(quick).open_session()
    for _ in range(2):
        answers = outputs(await talk.send())
        assert [("answer" in answer) for answer in answers] == [True, True, True, False]
        assert "3 calls" in answers[3]["error"]
    assert len(await sessions_of(quick, "helper")) == 6


@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_sub_agents_end_with_their_caller(hansard: Running, how: str) -> None:
    await create(hansard, "helper", SLOW)
    await create(hansard, "middle", [task(), DONE], helper={"agent_key": "helper"})
    await create(hansard, "agent", [task(tool="middle"), DONE], middle={"agent_key": "middle"})
    talk = await Talk(hansard).open_session()
    stream = talk.stream()
    async with aclosing(aiter(stream)) as source:
        turn_id = (await anext(source)).turn_id
        below = await child_of(hansard)
        middle = await child_of(hansard, "middle")
        if how == "cancel":
            await talk.release(turn_id)
        else:
            await hansard.sessions.DeleteSession(
                session_service_pb2.DeleteSessionRequest(agent_key="agent", session_key="s")
            )
        await until_status(middle, INTERRUPTED)
        await until_status(below, INTERRUPTED)
    assert kinds_of_events(await middle.events())[-1] == "tool_output"


def kinds_of_events(events: list[event_pb2.Event]) -> list[str]:
    return [str(event.WhichOneof("payload")) for event in events]


async def test_sub_agent_that_waits_keeps_the_call_waiting(hansard: Running) -> None:
    await create(hansard, "helper", [ask(), DONE], ask=TOOLS["ask"])
    await create(hansard, "agent", [task(), DONE], helper={"agent_key": "helper"})
    talk = await Talk(hansard).open_session()
    sending = asyncio.create_task(talk.send())
    below = await child_of(hansard)
    turn = await until_status(below, turn_pb2.TURN_STATUS_REQUIRES_ACTION)
    assert (await talk.turns())[0].status == turn_pb2.TURN_STATUS_RUNNING
    await answer(below, output(turn.pending_calls[0].tool_call_id))
    responses = await sending
    assert outputs(responses)[0]["answer"] == "Done."


async def test_approved_sub_agent(hansard: Running) -> None:
    await create(hansard, "helper", [DONE])
    asked = {**sub_agent({"agent_key": "helper"}), "require_approval": True}
    await create(hansard, "agent", [task(), DONE], helper=asked)
    talk = await Talk(hansard).open_session()
    waiting = await talk.send()
    assert await sessions_of(hansard, "helper") == []
    (call_id,) = pending(waiting)
    responses = await answer(talk, approve(call_id))
    assert outputs(responses)[0]["answer"] == "Done."


@pytest.mark.parametrize(
    ("configuration", "reason", "field"),
    [
        ({}, "INVALID_REQUEST", "agent_key"),
        ({"agent_key": "no spaces"}, "INVALID_REQUEST", "agent_key"),
        ({"agent_key": "a", "timeout": "0s"}, "INVALID_REQUEST", "timeout"),
    ],
)
async def test_configuration_that_can_not_be_used(
    plain: Running, configuration: dict[str, Any], reason: str, field: str
) -> None:
    refused = await failure(create(plain, "agent", [DONE], helper=sub_agent(configuration)))
    assert refused.reason == reason
    assert refused.fields[0].endswith(f"sub_agent_configuration.{field}")
