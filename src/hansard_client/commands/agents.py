"""`hansard agents`: who answers in sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hansard.v1 import agent_service_pb2
from hansard_client.commands.common import (
    LIMIT_DEFAULT,
    AgentKey,
    Caller,
    Limit,
    Yes,
    command,
    parse,
)
from hansard_client.connection import new_request_id
from hansard_client.errors import Mistake
from hansard_client.paging import all_pages
from hansard_client.rendering import Column, moment

app = typer.Typer(help="Agents: who answers in sessions.", no_args_is_help=True)

_COLUMNS = (
    Column("KEY", lambda agent: agent.key, whole=True),
    Column("NAME", lambda agent: agent.name),
    Column("MODEL", lambda agent: agent.model.name),
    Column("TOOLS", lambda agent: ", ".join(sorted(agent.tool_configurations))),
    Column("ENABLED", lambda agent: "yes" if agent.enabled else "no"),
    Column("CREATED", lambda agent: moment(agent.created_at)),
)


def _list(
    caller: Caller,
    *,
    filter: Annotated[  # noqa: A002 - the option's name
        str, typer.Option(help="Regular expression that name or description match.")
    ] = "",
    limit: Limit = LIMIT_DEFAULT,
) -> None:
    """List agents, the newest first."""
    request = agent_service_pb2.ListAgentsRequest(filter=filter)
    connection = caller.connection
    agents = all_pages(
        lambda page: connection.call(connection.agents.ListAgents, page), request, "agents", limit
    )
    caller.show(_COLUMNS, agents, limit=limit)


def _get(caller: Caller, agent: AgentKey) -> None:
    """Show an agent."""
    request = agent_service_pb2.GetAgentRequest(agent_key=agent)
    caller.show_one(caller.connection.call(caller.connection.agents.GetAgent, request))


def _create(
    caller: Caller,
    *,
    file: Annotated[
        Path | None, typer.Option(help="JSON with the fields of CreateAgentRequest.")
    ] = None,
    name: Annotated[str, typer.Option(help="What people call it.")] = "",
    key: Annotated[str, typer.Option(help="Its key; left out, it is made from the name.")] = "",
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    model: Annotated[str, typer.Option(help="Default: hansard/extractive.")] = "",
    tool: Annotated[
        list[str] | None, typer.Option(help="artifact_read, artifact_grep; may be repeated.")
    ] = None,
    instruction: Annotated[str, typer.Option(help="What the model is told.")] = "",
) -> None:
    """Create an agent from flags, or from a JSON file; flags go before the file."""
    fields: dict[str, Any] = {"model": {"name": "hansard/extractive"}}
    if file is not None:
        fields |= _read(file)
    flags = {"name": name, "key": key, "description": description}
    fields |= {field: value for field, value in flags.items() if value}
    if model:
        fields["model"] = {"name": model}
    if tool:
        fields["tool_configurations"] = {name: {name: {}} for name in tool}
    if instruction:
        fields["first_step"] = {"instructions": [{"inline": {"template": instruction}}]}
    fields.setdefault("request_id", new_request_id())
    request = parse(agent_service_pb2.CreateAgentRequest(), fields, "agent")
    made = caller.connection.call(caller.connection.agents.CreateAgent, request)
    caller.show(_COLUMNS, [made])


def _delete(caller: Caller, agent: AgentKey, *, yes: Yes = False) -> None:
    """Delete an agent with all its sessions."""
    caller.confirm(f"The agent {agent} and all its sessions will be deleted.", yes=yes)
    request = agent_service_pb2.DeleteAgentRequest(agent_key=agent)
    caller.connection.call(caller.connection.agents.DeleteAgent, request)
    caller.say(f"Deleted: {agent}")


def _read(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{file}: {error}") from None
    if not isinstance(fields, dict):
        raise Mistake(f"{file}: must hold a JSON object")
    return fields


command(app, "list")(_list)
command(app, "get")(_get)
command(app, "create")(_create)
command(app, "delete")(_delete)
