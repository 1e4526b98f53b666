"""`hansard events`: the record of a session, read and followed."""

from __future__ import annotations

from typing import Annotated

import typer

from hansard.v1 import event_pb2
from hansard_client.commands.common import (
    LIMIT_DEFAULT,
    AgentKey,
    Caller,
    Limit,
    SessionKey,
    command,
)
from hansard_client.commands.rendering import Column, content_of, kind_of, moment, print_json
from hansard_client.commands.text import one_line
from hansard_client.items import CaughtUp, Changed

app = typer.Typer(help="Events: the record of a session.", no_args_is_help=True)

_CONTENT_MAX_CHARACTERS = 400
_LINE_CHARACTERS = 110


def _content(event: event_pb2.Event) -> str:
    hidden = "(hidden) " if event.hide_reason else ""
    return hidden + one_line(content_of(event), _CONTENT_MAX_CHARACTERS)


EVENT_COLUMNS = (
    Column("SEQ", lambda event: str(event.sequence), whole=True, right=True),
    Column("TIME", lambda event: moment(event.created_at)[11:], whole=True),
    Column("TYPE", kind_of, whole=True),
    Column("CONTENT", _content),
)

After = Annotated[int, typer.Option(help="Only events after this sequence.", min=0)]


def _list(
    caller: Caller,
    agent: AgentKey,
    session: SessionKey,
    *,
    kind: Annotated[
        list[str] | None, typer.Option("--type", help="Only this type; may be repeated.")
    ] = None,
    turn: Annotated[str, typer.Option(help="Only events of this turn.")] = "",
    after: After = 0,
    newest_first: Annotated[bool, typer.Option(help="The highest sequence first.")] = False,
    limit: Limit = LIMIT_DEFAULT,
) -> None:
    """List the events of a session, hidden ones and tombstones too."""
    events = caller.hansard.session(agent, session).events.list(
        types=kind or (),
        turn_id=turn,
        after_sequence=after,
        include_hidden=True,
        newest_first=newest_first,
        limit=limit or None,
    )
    caller.show(EVENT_COLUMNS, events, limit=limit)


def _watch(
    caller: Caller,
    agent: AgentKey,
    session: SessionKey,
    *,
    after: After = 0,
    limit: Annotated[int, typer.Option(help="End after so many; 0: go on.", min=0)] = 0,
) -> None:
    """Follow the events of a session as they happen, the stored ones first, until Ctrl-C."""
    count = 0
    items = caller.hansard.session(agent, session).watch_all(after_sequence=after, deltas=False)
    for item in items:
        if isinstance(item, CaughtUp) and not caller.as_json:
            caller.say("(that is all so far; what happens from now on follows, until Ctrl-C)")
        changed = isinstance(item, Changed)
        event = item.event if isinstance(item, Changed) else item
        if not isinstance(event, event_pb2.Event):
            continue
        if caller.as_json:
            print_json(caller.out, event)
        else:
            mark = "changed " if changed else ""
            line = f"{event.sequence:>5}  {moment(event.created_at)[11:]}  {mark}{kind_of(event)}  "
            line += one_line(content_of(event), _LINE_CHARACTERS)
            caller.out.print(one_line(line), soft_wrap=True)
        count += 1
        if count == limit:
            return


command(app, "list")(_list)
command(app, "watch")(_watch)
