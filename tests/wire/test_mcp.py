"""Tools of MCP servers: real servers of the official SDK, over streamable HTTP and stdio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hansard.v1 import agent_pb2, agent_service_pb2, event_pb2, turn_pb2
from tests.support.actions import answer, approve
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.mcp import (
    McpProcess,
    connections_file,
    kill_noted,
    mcp_process,
    read_notes,
    until_noted,
)
from tests.support.server import Running, failure, make_settings, running_server
from tests.support.talk import Talk, check_turn, model, stored

HTTP, STDIO = "http", "stdio"


@dataclass
class Place:
    """A server and the MCP server that its agents have."""

    hansard: Running
    server: str
    notes_path: Path
    process: McpProcess | None = None

    async def talk(self, script: list[dict[str, Any]], *tools: str, **fields: Any) -> Talk:
        """Return a session with an agent that has these tools of the server."""
        await self.hansard.agents.CreateAgent(
            agent_service_pb2.CreateAgentRequest(
                key="agent",
                name="Agent",
                model=model(script),
                tool_configurations={
                    tool: agent_pb2.ToolConfiguration(
                        mcp={"tool_id": tool, "server": self.server}, **fields
                    )
                    for tool in tools
                },
            )
        )
        return await Talk(self.hansard).open_session()

    def kill(self) -> None:
        """Kill the MCP server."""
        if self.process is not None:
            self.process.kill()
        else:
            kill_noted(self.notes_path)


@asynccontextmanager
async def make_place(
    folder: Path, store_url: str, transport: str, manner: str = ""
) -> AsyncIterator[Place]:
    notes_path = folder / "notes"
    if transport == STDIO:
        connections = connections_file(folder / "connections.toml", notes_path, manner)
        settings = make_settings(folder / "data", store_url, connections=connections)
        async with running_server(settings) as running:
            yield Place(running, "local", notes_path)
    else:
        with mcp_process(folder, manner) as process:
            allow = f"127.0.0.1:{process.port}"
            settings = make_settings(folder / "data", store_url, outgoing_allow=allow)
            async with running_server(settings) as running:
                yield Place(running, process.url, notes_path, process)
    check_store(store_url, folder / "data")


@pytest.fixture(params=[HTTP, STDIO])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def place(transport: str, databases: Databases, tmp_path: Path) -> AsyncIterator[Place]:
    async with make_place(tmp_path, databases.migrated("sqlite"), transport) as made:
        yield made


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"tool_call": {"name": name, "input": arguments}}


ANSWER = {"agent_output": {"content": "Done."}}


def outputs(events: list[event_pb2.Event]) -> list[event_pb2.ToolOutput]:
    return [event.tool_output for event in events if event.HasField("tool_output")]


async def ended(talk: Talk) -> turn_pb2.Turn:
    """Return the turn as soon as it has ended."""
    async with asyncio.timeout(60):
        while True:
            [turn] = await talk.turns()
            if turn.status not in (turn_pb2.TURN_STATUS_RUNNING, turn_pb2.TURN_STATUS_QUEUED):
                return turn
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("transport", [HTTP, STDIO])
async def test_two_tools_side_by_side_and_one_after_them(
    store_url: str, tmp_path: Path, transport: str
) -> None:
    async with make_place(tmp_path, store_url, transport) as place:
        script = [call("add", a=1, b=2), call("echo", value={"x": [None, 1]}), {"pause_ms": 0}]
        script += [call("add", a=3, b=4), ANSWER]
        talk = await place.talk(script, "add", "echo")
        responses = await talk.send()
        check_turn(responses)
        first, second, third = outputs(stored(responses))
        assert json.loads(first.tool_output_json)["structured_content"] == {"result": 3}
        [text] = json.loads(second.tool_output_json)["content"]
        assert text == {"type": "text", "text": "{'x': [None, 1]}"}
        assert json.loads(third.tool_output_json)["structured_content"] == {"result": 7}
        assert {first.tool_name, second.tool_name} == {"mcp:add", "mcp:echo"}
        assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED


async def test_model_is_told_what_the_server_says_of_its_tools(place: Place) -> None:
    talk = await place.talk([ANSWER], "add")
    await talk.set_model(model(echo="tools"))
    [thought, _] = [e for e in stored(await talk.send()) if not e.HasField("input_message")]
    assert "Adds two numbers." in thought.thinking.content
    assert '"required":["a","b"]' in thought.thinking.content.replace(" ", "")


async def test_arguments_that_break_the_servers_schema_do_not_reach_it(place: Place) -> None:
    talk = await place.talk([call("add", a="one"), ANSWER], "add")
    [output] = outputs(stored(await talk.send()))
    assert output.error
    assert "a: 'one' is not of type 'integer'" in output.tool_output_json
    assert not [note for note in place_notes(place) if note.startswith("add")]


async def test_fixed_arguments_reach_the_server_and_not_the_model(place: Place) -> None:
    talk = await place.talk([call("add", a=1), ANSWER], "add", argument_override={"b": 41})
    [output] = outputs(stored(await talk.send()))
    assert json.loads(output.tool_output_json)["structured_content"] == {"result": 42}
    await talk.set_model(model(echo="tools"))
    thought = next(e for e in stored(await talk.send()) if e.HasField("thinking"))
    assert '"b"' not in thought.thinking.content


async def test_tool_runs_once_it_is_approved(place: Place) -> None:
    talk = await place.talk([call("add", a=1, b=2), ANSWER], "add", require_approval=True)
    waiting = await talk.send()
    assert not [note for note in place_notes(place) if note.startswith("add")]
    [pending] = waiting[-1].requires_action.turn.pending_calls
    responses = await answer(talk, approve(pending.tool_call_id))
    [output] = outputs(stored(responses))
    assert json.loads(output.tool_output_json)["structured_content"] == {"result": 3}
    assert [note for note in place_notes(place) if note.startswith("add")] == ["add 1 2"]


async def test_error_of_the_tool_is_an_error_of_the_call(place: Place) -> None:
    talk = await place.talk([call("refuse"), ANSWER], "refuse")
    responses = await talk.send()
    [output] = outputs(stored(responses))
    assert output.outcome == event_pb2.TOOL_OUTCOME_FAILED
    assert "closed on Mondays" in output.tool_output_json
    assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED


async def test_large_answer_becomes_an_artifact(place: Place) -> None:
    talk = await place.talk([call("much", size=200_000), ANSWER], "much")
    events = stored(await talk.send())
    [output] = outputs(events)
    assert output.offloaded_artifact.size_bytes > 400_000
    assert len(output.tool_output_json) <= 64 * 1024


async def test_answer_beyond_what_is_taken_is_an_error(
    databases: Databases, tmp_path: Path
) -> None:
    async with make_place(tmp_path, databases.migrated("sqlite"), HTTP) as place:
        talk = await place.talk([call("much", size=9 * 1024 * 1024), ANSWER], "much")
        [output] = outputs(stored(await talk.send()))
        assert output.error
        assert len(output.tool_output_json) < 1_000


async def test_pictures_and_resources_become_artifacts(place: Place) -> None:
    talk = await place.talk([call("picture"), ANSWER], "picture")
    events = stored(await talk.send())
    [output] = outputs(events)
    text, image, blob, note, link = json.loads(output.tool_output_json)["content"]
    assert text["text"] == "Here they are."
    assert (image["type"], image["mime_type"]) == ("image", "image/png")
    assert (blob["filename"], blob["size_bytes"]) == ("data.bin", 3)
    assert note["text"] == "A note."
    assert link["uri"] == "https://example.com/more"
    [upload] = [e.artifact_upload for e in events if e.HasField("artifact_upload")]
    assert [a.artifact_id for a in upload.artifacts] == [image["artifact_id"], blob["artifact_id"]]
    [read] = [e.image_read for e in events if e.HasField("image_read")]
    assert read.artifact_id == image["artifact_id"]


async def test_interrupt_cancels_the_call_at_the_server(place: Place) -> None:
    talk = await place.talk([call("wait"), ANSWER], "wait")
    stream = talk.stream()
    first = await anext(aiter(stream))
    await until_noted(place.notes_path, "wait began")
    await talk.release(first.turn_id)
    await until_noted(place.notes_path, "wait cancelled")
    turn = await ended(talk)
    assert turn.status == turn_pb2.TURN_STATUS_INTERRUPTED
    [output] = outputs(await talk.events())
    assert output.outcome == event_pb2.TOOL_OUTCOME_INTERRUPTED


async def test_tool_that_is_new_is_found_by_the_next_turn(place: Place) -> None:
    talk = await place.talk([call("grow"), ANSWER], "grow", "grown")
    await talk.send()
    await talk.set_model(model([call("grown"), ANSWER]))
    [output] = outputs(stored(await talk.send()))
    # A process of its own for each turn does not remember; a server that stays does.
    if place.process is None:
        assert "does not have it" in output.tool_output_json
    else:
        assert "I am new." in output.tool_output_json


async def test_server_that_speaks_the_older_protocol_says_that_its_list_has_changed(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.migrated("sqlite")
    async with make_place(tmp_path, url, HTTP, "older") as place:
        talk = await place.talk([call("rename"), ANSWER], "add", "rename")
        [output] = outputs(stored(await talk.send()))
        assert not output.error
        # The listing is not a minute old, and would be believed without a word of the server's.
        await talk.set_model(model(echo="tools"))
        async with asyncio.timeout(60):
            while "says it anew" not in (await described(talk)):  # noqa: ASYNC110 - asks each time
                await asyncio.sleep(0.05)
        assert place_notes(place).count("list") == 2


async def described(talk: Talk) -> str:
    """Return what the model is told of the agent's tools."""
    thought = next(e for e in stored(await talk.send()) if e.HasField("thinking"))
    return str(thought.thinking.content)


def place_notes(place: Place) -> list[str]:
    return read_notes(place.notes_path)


# The server dies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", ["list", "silent"])
async def test_server_that_dies_or_hangs_while_listing_is_a_tool_that_says_so(
    transport: str,
    manner: str,
    databases: Databases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if manner == "silent":
        monkeypatch.setattr("hansard_server.agents.mcp.toolbox.LISTING_S", 0.5)
    url = databases.migrated("sqlite")
    async with make_place(tmp_path, url, transport, manner) as place:
        talk = await place.talk([call("add", a=1, b=2), ANSWER], "add")
        responses = await talk.send()
        check_turn(responses)
        [output] = outputs(stored(responses))
        assert output.outcome == event_pb2.TOOL_OUTCOME_FAILED
        assert "The tool can't be used." in output.tool_output_json
        assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED


@pytest.mark.parametrize("transport", [HTTP])
async def test_server_that_is_not_there_is_a_tool_that_says_so(place: Place) -> None:
    place.kill()
    talk = await place.talk([call("add", a=1, b=2), ANSWER], "add")
    [output] = outputs(stored(await talk.send()))
    assert "The server can't be reached." in output.tool_output_json


async def test_server_killed_in_the_middle_of_a_call(place: Place) -> None:
    talk = await place.talk([call("kill"), call("wait"), {"pause_ms": 0}, ANSWER], "kill", "wait")
    responses = await talk.send()
    check_turn(responses)
    killed, waited = outputs(stored(responses))
    assert killed.error
    assert waited.error
    assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED


async def test_server_killed_between_two_calls(place: Place) -> None:
    pause = {"pause_ms": 1_500}
    script = [call("add", a=1, b=2), {"thinking": {"content": "Hm."}}, pause]
    talk = await place.talk([*script, call("add", a=3, b=4), ANSWER], "add")
    stream = talk.stream()
    responses = []
    async for response in stream:
        responses.append(response)
        if response.event.HasField("tool_output"):
            place.kill()
    first, second = outputs(stored(responses))
    assert not first.error
    # What is started for the turn is started again; nobody starts a server elsewhere.
    assert second.error == (place.process is not None)
    assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED


async def test_server_killed_before_a_turn_and_started_again_is_used_by_the_next(
    databases: Databases, tmp_path: Path
) -> None:
    async with make_place(tmp_path, databases.migrated("sqlite"), HTTP) as place:
        talk = await place.talk([call("add", a=1, b=2), ANSWER], "add")
        assert not outputs(stored(await talk.send()))[0].error
        assert place.process is not None
        place.kill()
        assert outputs(stored(await talk.send()))[0].error
        place.process.start()
        assert not outputs(stored(await talk.send()))[0].error


# What may be configured ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server",
    [
        *("nobody", "http://127.0.0.1:1/mcp", "https://example.com/mcp"),
        *("http://user@127.0.0.1:1/", "http://2130706433:1/mcp", "file:///etc/passwd"),
    ],
)
async def test_agent_with_a_server_that_is_not_allowed_is_refused(
    plain: Running, server: str
) -> None:
    request = agent_service_pb2.CreateAgentRequest(
        key="agent",
        name="Agent",
        model=model([ANSWER]),
        tool_configurations={"x": {"mcp": {"tool_id": "add", "server": server}}},
    )
    refused = await failure(plain.agents.CreateAgent(request))
    assert refused.reason == "INVALID_AGENT_CONFIGURATION"
    assert refused.fields == ("tool_configurations.x.mcp.server",)
