"""The commands for people. `add_to` gives them to the program."""

from __future__ import annotations

import typer

from hansard_client.commands import agents, artifacts, chat, corpora, events, keys, sessions
from hansard_client.commands.common import command


def add_to(main: typer.Typer) -> None:
    """Add the commands of the client to the program."""
    command(main, "chat", json=False)(chat.chat)
    main.add_typer(agents.app, name="agents")
    main.add_typer(sessions.app, name="sessions")
    main.add_typer(events.app, name="events")
    main.add_typer(artifacts.app, name="artifacts")
    main.add_typer(corpora.app, name="corpora")
    main.add_typer(keys.app, name="keys")
