"""`hansard agents`: who answers in sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hansard_client.commands.common import (
    LIMIT_DEFAULT,
    AgentKey,
    Caller,
    Limit,
    Mistake,
    Yes,
    command,
)
from hansard_client.commands.rendering import Column, moment

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
    agents = caller.hansard.agents.list(filter=filter, limit=limit or None)
    caller.show(_COLUMNS, agents, limit=limit)


def _get(caller: Caller, agent: AgentKey) -> None:
    """Show an agent."""
    caller.show_one(caller.hansard.agents.get(agent))


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
        list[str] | None,
        typer.Option(help="artifact_grep, artifact_read, document_conversion …; may be repeated."),
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
    try:
        made = caller.hansard.agents.create_from(fields)
    except ValueError as error:
        raise Mistake(f"agent: {error}") from None
    caller.show(_COLUMNS, [made])


def _delete(caller: Caller, agent: AgentKey, *, yes: Yes = False) -> None:
    """Delete an agent with all its sessions."""
    caller.confirm(f"The agent {agent} and all its sessions will be deleted.", yes=yes)
    caller.hansard.agents.delete(agent)
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
