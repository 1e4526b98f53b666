"""Agents: who answers in sessions."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Iterable, Mapping

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from hansard.v1 import agent_service_pb2 as wire
from hansard.v1.agent_pb2 import (
    Agent,
    CompactionSettings,
    Model,
    RemoteRuntime,
    Step,
    ToolConfiguration,
)
from hansard_client import rpcs
from hansard_client.errors import AgentNotFound
from hansard_client.link import Link
from hansard_client.operations import resources
from hansard_client.operations.values import (
    Fields,
    given,
    new_request_id,
    to_message,
    to_order,
    to_struct,
    to_timestamp,
)

Tools = Mapping[str, ToolConfiguration | Fields]


async def create(
    link: Link,
    *,
    name: str,
    model: str | Model | Fields,
    key: str = "",
    description: str = "",
    instructions: Iterable[str] = (),
    first_step: Step | Fields | None = None,
    tools: Iterable[str] = (),
    tool_configurations: Tools | None = None,
    compaction: CompactionSettings | Fields | None = None,
    remote_runtime: RemoteRuntime | Fields | None = None,
    metadata: Struct | Fields | None = None,
    enabled: bool | None = None,
    request_id: str | None = None,
) -> Agent:
    """Create an agent and return it.

    Args:
        name: what people call it.
        model: its name, or all of it.
        key: its key; left out, it is made from the name.
        description: what it is for.
        instructions: templates that are put before the conversation; or see `first_step`.
        first_step: the step in full, instead of `instructions`.
        tools: tools that need no settings (`artifact_grep`), each under its own name.
        tool_configurations: tools with their settings.
        compaction: when a long conversation is summarised.
        remote_runtime: the server that answers in the model's place.
        metadata: anything to keep with it.
        enabled: whether it takes inputs.
        request_id: by default a new one, under which the call is repeated when it breaks.

    Raises AgentAlreadyExists, InvalidArgument and what every call may raise.
    """
    configurations = {tool: to_message(ToolConfiguration(), {tool: {}}) for tool in tools}
    configurations |= _tools(tool_configurations or {})
    if first_step is None and (templates := list(instructions)):
        first_step = {"instructions": [{"inline": {"template": text}} for text in templates]}
    request = wire.CreateAgentRequest(
        key=key,
        name=name,
        description=description,
        model=_model(model),
        tool_configurations=configurations,
        request_id=request_id or new_request_id(),
        **given(
            first_step=to_message(Step(), first_step),
            compaction=to_message(CompactionSettings(), compaction),
            remote_runtime=to_message(RemoteRuntime(), remote_runtime),
            metadata=to_struct(metadata),
            enabled=enabled,
        ),
    )
    return await link.call(rpcs.CREATE_AGENT, request)


async def create_from(link: Link, request: wire.CreateAgentRequest | Fields) -> Agent:
    """Create an agent from the whole request, as a message or a mapping, and return it.

    Without a request_id it gets one. Raises as `create`.
    """
    made = wire.CreateAgentRequest()
    if isinstance(request, wire.CreateAgentRequest):
        made.CopyFrom(request)
    else:
        to_message(made, request)
    made.request_id = made.request_id or new_request_id()
    return await link.call(rpcs.CREATE_AGENT, made)


async def get(link: Link, agent_key: str) -> Agent:
    """Return an agent. Raises AgentNotFound."""
    return await link.call(rpcs.GET_AGENT, wire.GetAgentRequest(agent_key=agent_key))


def list_(
    link: Link,
    *,
    filter: str = "",  # noqa: A002 - the contract's name
    metadata: Struct | Fields | None = None,
    enabled: bool | None = None,
    created_at_or_after: dt.datetime | None = None,
    created_before: dt.datetime | None = None,
    newest_first: bool | None = None,
    limit: int | None = None,
    page_size: int = 0,
) -> AsyncGenerator[Agent, None]:
    """Yield agents, the newest first unless said otherwise, fetched page by page.

    Args:
        filter: a regular expression that name or description match.
        metadata: entries that the agent's metadata has.
        enabled: only such agents.
        created_at_or_after: the earliest.
        created_before: the end of the time.
        newest_first: the order.
        limit: at most so many; None: all.
        page_size: how many are fetched at a time; 0: as many as the server likes.
    """
    request = wire.ListAgentsRequest(
        filter=filter,
        order=to_order(newest_first=newest_first),
        page_size=page_size,
        **given(
            metadata=to_struct(metadata),
            enabled=enabled,
            created_at_or_after=to_timestamp(created_at_or_after),
            created_before=to_timestamp(created_before),
        ),
    )
    return link.pages(rpcs.LIST_AGENTS, request, lambda page: page.agents, limit)


async def update(
    link: Link,
    agent_key: str,
    *,
    etag: str = "",
    name: str | None = None,
    description: str | None = None,
    model: str | Model | Fields | None = None,
    first_step: Step | Fields | None = None,
    tool_configurations: Tools | None = None,
    compaction: CompactionSettings | Fields | None = None,
    remote_runtime: RemoteRuntime | Fields | None = None,
    metadata: Struct | Fields | None = None,
    enabled: bool | None = None,
) -> Agent:
    """Change what is given, each replacing what was there as a whole, and return the agent.

    `etag`: of the agent as it was read; when somebody has changed it since, EtagMismatch. Without
    one the call is not repeated after a failure in which it may have taken effect. Raises
    AgentNotFound, EtagMismatch, InvalidArgument; ValueError when nothing is given.
    """
    fields = given(
        name=name,
        description=description,
        model=None if model is None else _model(model),
        first_step=to_message(Step(), first_step),
        tool_configurations=None if tool_configurations is None else _tools(tool_configurations),
        compaction=to_message(CompactionSettings(), compaction),
        remote_runtime=to_message(RemoteRuntime(), remote_runtime),
        metadata=to_struct(metadata),
        enabled=enabled,
    )
    return await patch(link, Agent(key=agent_key, etag=etag, **fields), fields)


async def patch(link: Link, agent: Agent, paths: Iterable[str]) -> Agent:
    """Change what the paths name (`model`, `tool_configurations.lookup`) to what the agent has.

    An agent that was read has its etag, which protects the change; see `update`.
    """
    paths = list(paths)
    if not paths:
        raise ValueError("nothing to update is given")
    return await resources.update(
        link,
        rpcs.UPDATE_AGENT,
        wire.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=paths)),
        lambda: get(link, agent.key),
        (agent, agent.etag, paths),
    )


async def delete(link: Link, agent_key: str, *, uid: str = "") -> None:
    """Delete an agent with its sessions; with `uid` only in that incarnation.

    Raises AgentNotFound.
    """
    await resources.delete(
        link,
        rpcs.DELETE_AGENT,
        wire.DeleteAgentRequest(agent_key=agent_key),
        lambda: get(link, agent_key),
        uid,
        AgentNotFound(f"another agent has the key {agent_key} now"),
    )


def _model(model: str | Model | Fields) -> Model:
    return Model(name=model) if isinstance(model, str) else to_message(Model(), model)


def _tools(tools: Tools) -> dict[str, ToolConfiguration]:
    return {name: to_message(ToolConfiguration(), tool) for name, tool in tools.items()}
