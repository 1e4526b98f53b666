"""Telling: what an agent elsewhere is told before it begins, in messages that any server takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from google.protobuf import duration_pb2
from google.protobuf.message import Message

from hansard.runtime.v1 import agent_runtime_service_pb2 as runtime_pb2
from hansard.v1 import agent_pb2, event_pb2
from hansard_server.agents.api import ToolDescription, TurnContext
from hansard_server.agents.json_text import dump_json
from hansard_server.domain.limits import MIB

M = TypeVar("M", bound=Message)
PAGE_MAX_BYTES = MIB
"""Of events or tools in a message, but for a single one that is larger: servers take 4 MiB unless
they say otherwise."""


def tell(
    context: TurnContext,
    *,
    turn_id: str,
    instructions: Sequence[str],
    tools: Sequence[ToolDescription],
    history: Sequence[event_pb2.Event],
    heartbeat_s: float,
    deadline_s: float,
) -> Iterator[runtime_pb2.RunTurnRequest]:
    """Yield what the agent is told, from `start` to `begin`."""
    yield runtime_pb2.RunTurnRequest(
        start=runtime_pb2.Start(
            turn_id=turn_id,
            agent=_who(context.agent),
            session=context.session,
            instructions=instructions,
            heartbeat_interval=_duration(heartbeat_s),
            deadline=_duration(deadline_s),
        )
    )
    for listed in _pages(map(_tool, tools)):
        yield runtime_pb2.RunTurnRequest(tools=runtime_pb2.Tools(tools=listed))
    for events in _pages(history):
        yield runtime_pb2.RunTurnRequest(history=runtime_pb2.History(events=events))
    yield runtime_pb2.RunTurnRequest(begin=runtime_pb2.Begin())


def _who(agent: agent_pb2.Agent) -> agent_pb2.Agent:
    who = agent_pb2.Agent()
    who.CopyFrom(agent)
    who.ClearField("tool_configurations")
    who.ClearField("first_step")
    who.ClearField("remote_runtime")
    return who


def _tool(tool: ToolDescription) -> runtime_pb2.Tool:
    return runtime_pb2.Tool(
        name=tool.name,
        description=tool.description,
        input_schema_json=dump_json(tool.input_schema),
    )


def _pages(messages: Iterable[M]) -> Iterator[list[M]]:
    page: list[M] = []
    size = 0
    for message in messages:
        bytes_more = message.ByteSize()
        if page and size + bytes_more > PAGE_MAX_BYTES:
            yield page
            page, size = [], 0
        page.append(message)
        size += bytes_more
    if page:
        yield page


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
