"""Turns that wait for somebody: agents whose tools ask, and the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format

from hansard.v1 import agent_pb2, agent_service_pb2, event_service_pb2, turn_pb2
from tests.support.talk import Talk, model

ToolResult = event_service_pb2.ToolResult
APPROVAL = turn_pb2.PENDING_CALL_KIND_APPROVAL
CLIENT_TOOL = turn_pb2.PENDING_CALL_KIND_CLIENT_TOOL

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "room": {"type": "string"}},
    "required": ["question"],
}
TOOLS: dict[str, Any] = {
    "ask": {"client": {"input_schema_json": json.dumps(SCHEMA)}},
    "make": {"artifact_create": {}, "require_approval": True},
    "make_at_once": {"artifact_create": {}},
}
"""A client's tool, one that needs an approval and leaves a file, and one that needs nobody."""


def ask(question: str = "How many?", **arguments: Any) -> dict[str, Any]:
    """Return a call of the client's tool."""
    return {"tool_call": {"name": "ask", "input": {"question": question, **arguments}}}


def make(filename: str = "a.txt", name: str = "make") -> dict[str, Any]:
    """Return a call of a tool that makes a file."""
    return {"tool_call": {"name": name, "input": {"filename": filename, "content": "text"}}}


DONE = {"agent_output": {"content": "Done.", "delta_count": 3}}


async def begin(
    talk: Talk, script: Sequence[dict[str, Any]], tools: dict[str, Any] | None = None
) -> Talk:
    """Create the agent with these tools, and its session."""
    made = {
        name: json_format.ParseDict(tool, agent_pb2.ToolConfiguration())
        for name, tool in (tools or TOOLS).items()
    }
    await talk.server.agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(
            key=talk.agent_key, name="Agent", model=model(script), tool_configurations=made
        )
    )
    return await talk.open_session()


def output(tool_call_id: str, value: Any = 12, *, error: bool = False) -> ToolResult:
    """Return what a client's tool gave."""
    text = value if isinstance(value, str) else json.dumps(value)
    given = event_service_pb2.ToolResultOutput(tool_output_json=text, error=error)
    return ToolResult(tool_call_id=tool_call_id, output=given)


def approve(tool_call_id: str) -> ToolResult:
    """Return an approval."""
    return ToolResult(tool_call_id=tool_call_id, approve=event_service_pb2.ToolApproval())


def reject(tool_call_id: str, reason: str = "") -> ToolResult:
    """Return a rejection."""
    return ToolResult(
        tool_call_id=tool_call_id, reject=event_service_pb2.ToolRejection(reason=reason)
    )


def answer_call(talk: Talk, *results: ToolResult, **fields: Any) -> Any:
    """Return the running call that answers pending calls."""
    return talk.server.events.SendEvent(
        event_service_pb2.SendEventRequest(
            tool_results=event_service_pb2.ToolResults(results=results), **talk.keys, **fields
        )
    )


async def answer(talk: Talk, *results: ToolResult, **fields: Any) -> list[Any]:
    """Answer pending calls and return the whole stream."""
    return [response async for response in answer_call(talk, *results, **fields)]


def pending(responses: Sequence[Any]) -> dict[str, int]:
    """Return the kinds of the calls that the turn waits for at a stream's end, by id."""
    turn = responses[-1].requires_action.turn
    assert turn.status == turn_pb2.TURN_STATUS_REQUIRES_ACTION
    return {call.tool_call_id: call.kind for call in turn.pending_calls}


def calls_of(responses: Sequence[Any]) -> list[str]:
    """Return the ids of the calls that a stream shows, in order."""
    return [r.event.tool_input.tool_call_id for r in responses if r.event.HasField("tool_input")]


def kinds_of(responses: Sequence[Any]) -> list[str]:
    """Return what a stream's events are, and of tool_outputs the outcome."""
    kinds = []
    for response in responses:
        if response.HasField("event"):
            kind = str(response.event.WhichOneof("payload"))
            outcome = response.event.tool_output.outcome
            kinds.append(f"{kind} {_OUTCOMES[outcome]}" if kind == "tool_output" else kind)
    return kinds


_OUTCOMES = ("", "COMPLETED", "FAILED", "INTERRUPTED", "TIMED_OUT", "REJECTED")
