"""`hansard sessions`: conversations with an agent."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from hansard.v1 import session_pb2
from hansard_client.commands.common import (
    LIMIT_DEFAULT,
    AgentKey,
    Caller,
    Limit,
    Mistake,
    SessionKey,
    Yes,
    command,
)
from hansard_client.commands.rendering import Column, moment

app = typer.Typer(help="Sessions: conversations with an agent.", no_args_is_help=True)


def _status(session: session_pb2.Session) -> str:
    return session_pb2.SessionStatus.Name(session.status).removeprefix("SESSION_STATUS_")


_COLUMNS = (
    Column("KEY", lambda session: session.key, whole=True),
    Column("NAME", lambda session: session.name),
    Column("STATUS", _status),
    Column("EVENTS", lambda session: str(session.last_sequence), right=True),
    Column("CREATED", lambda session: moment(session.created_at)),
)


def _list(
    caller: Caller,
    agent: AgentKey,
    *,
    filter: Annotated[  # noqa: A002 - the option's name
        str, typer.Option(help="Regular expression that name or description match.")
    ] = "",
    limit: Limit = LIMIT_DEFAULT,
) -> None:
    """List the sessions of an agent, the newest first."""
    sessions = caller.hansard.sessions.list(agent, filter=filter, limit=limit or None)
    caller.show(_COLUMNS, sessions, limit=limit)


def _get(caller: Caller, agent: AgentKey, session: SessionKey) -> None:
    """Show a session."""
    caller.show_one(caller.hansard.sessions.get(agent, session))


def _create(  # noqa: PLR0913 - an option each
    caller: Caller,
    agent: AgentKey,
    *,
    name: Annotated[str, typer.Option(help="What people call it.")],
    key: Annotated[str, typer.Option(help="Its key; left out, it is made from the name.")] = "",
    description: Annotated[str, typer.Option(help="What it is about.")] = "",
    metadata: Annotated[str, typer.Option(help="A JSON object to keep with it.")] = "",
    tti_minutes: Annotated[
        int, typer.Option(help="Deleted after so long without an event; 0: never.", min=0)
    ] = 0,
    origin: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="[AGENT/]SESSION",
            help="Fork this session: begin with its events and artifacts.",
        ),
    ] = "",
    up_to: Annotated[
        str, typer.Option(metavar="EVENT", help="Of --from: the last event that is copied.")
    ] = "",
) -> None:
    """Create a session, empty or forked from another."""
    source = None
    if origin:
        agent_key, _, session_key = origin.rpartition("/")
        source = session_pb2.FromSession(
            agent_key=agent_key, session_key=session_key, include_up_to_event_id=up_to
        )
    elif up_to:
        raise Mistake("--up-to: says where to stop; name the session by --from")
    try:
        made = caller.hansard.sessions.create(
            agent,
            name=name,
            key=key,
            description=description,
            metadata=_object(metadata) if metadata else None,
            tti_minutes=tti_minutes,
            from_session=source,
        )
    except ValueError as error:
        raise Mistake(f"session: {error}") from None
    caller.show(_COLUMNS, [made])


def _delete(caller: Caller, agent: AgentKey, session: SessionKey, *, yes: Yes = False) -> None:
    """Delete a session with its events and artifacts."""
    caller.confirm(f"The session {session} and all that it holds will be deleted.", yes=yes)
    caller.hansard.sessions.delete(agent, session)
    caller.say(f"Deleted: {session}")


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"metadata: {error}") from None
    if not isinstance(value, dict):
        raise Mistake("metadata: must be a JSON object")
    return value


command(app, "list")(_list)
command(app, "get")(_get)
command(app, "create")(_create)
command(app, "delete")(_delete)
