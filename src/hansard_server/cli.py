"""The command `hansard`.

Exit codes: 0 all went well; 1 something failed that nobody foresaw; 2 the settings can't be used;
3 something outside them keeps the server from starting; 128 + signal: a second signal cut it short.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
import uvloop

from hansard_client import commands
from hansard_client.connection import Connection
from hansard_client.demo import Demo
from hansard_server import __version__, telemetry
from hansard_server.app import Server
from hansard_server.config import (
    CONFIG_VARIABLE,
    ConfigurationMistake,
    Settings,
    load,
    split_listen,
)
from hansard_server.stores import CannotStart, migrate_store, sqlite_path

EXIT_MISTAKE = 2
EXIT_CANNOT_START = 3
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# For the interpreter's own end, after which nothing may keep the process.
_EXIT_GRACE_S = 0.5
_PORTS_TRIED = 50

_log = structlog.get_logger("hansard.server")

main = typer.Typer(
    name="hansard",
    help="Keeps the record of agent sessions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None, typer.Option(envvar=CONFIG_VARIABLE, help="TOML file with settings.")
]
Store = Annotated[
    str | None, typer.Option(help="Database: sqlite:///<path> or postgresql://…", metavar="URL")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of all that has no place of its own.", metavar="DIR")
]
More = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting; may be repeated.", metavar="NAME=VALUE"),
]


def _show_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"hansard {__version__}")
        raise typer.Exit


@main.callback()
def _all_commands(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take what stands before the command."""


@main.command()
def serve(
    *,
    listen: Annotated[
        str | None, typer.Option(help="Where calls are taken.", metavar="HOST:PORT")
    ] = None,
    store: Store = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Where bytes of artifacts are kept.", metavar="DIR|URL")
    ] = None,
    data_dir: DataDir = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Listen beyond this machine without authentication."),
    ] = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Serve sessions over gRPC until SIGTERM or SIGINT; a second signal cuts that short."""
    flags = {
        "listen": listen,
        "store": store,
        "artifacts": artifacts,
        "data_dir": data_dir,
        "insecure": insecure,
    }
    try:
        settings = _settings(flags, config, more)
        telemetry.configure(settings.log_level)
        uvloop.run(run(settings))
    except (ConfigurationMistake, CannotStart) as error:
        _fail(error)


@main.command()
def migrate(
    *,
    store: Store = None,
    data_dir: DataDir = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Bring the database to the schema of this version."""
    try:
        settings = _settings({"store": store, "data_dir": data_dir}, config, more)
        telemetry.configure(settings.log_level)
        file = sqlite_path(settings.store_url)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        migrate_store(settings.store_url)
    except (ConfigurationMistake, CannotStart) as error:
        _fail(error)
    typer.echo("The database has the schema of this version.")


@main.command()
def demo() -> None:
    """Serve from ./hansard-data, hold a first conversation, and go on serving until Ctrl-C."""
    try:
        wanted = _settings({"log_level": "warning"}, None, None)
        settings = wanted.model_copy(update={"listen": _free_listen(wanted.listen)})
        telemetry.configure(settings.log_level)
        uvloop.run(run(settings, beside=_converse))
    except (ConfigurationMistake, CannotStart) as error:
        _fail(error)


commands.add_to(main)


async def run(
    settings: Settings, *, beside: Callable[[str, threading.Event], None] | None = None
) -> None:
    """Serve until a signal comes, then drain. Raises ConfigurationMistake, CannotStart.

    `beside` is run in a thread meanwhile, with the server's address; the event tells it to stop.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()

    def on_signal(number: int) -> None:
        if signalled.is_set():
            _log.warning("cut short by a second signal")
            os._exit(128 + number)
        signalled.set()
        _leave_after(settings.drain_deadline_s)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    server = await Server.start(settings)
    stopping = threading.Event()
    task = beside and asyncio.create_task(asyncio.to_thread(beside, server.address, stopping))
    await signalled.wait()
    stopping.set()
    await server.stop()
    if task:
        await task


def _converse(address: str, stopping: threading.Event) -> None:
    typer.echo(f"Serving at {address}.")
    with Connection(address) as connection:
        connection.stopping = stopping
        Demo(connection).run()
    if not stopping.is_set():
        typer.echo(f"Still serving at {address}. Ctrl-C stops.")


def _free_listen(listen: str) -> str:
    """Return the address, or the next one with a port that nobody has taken."""
    host, first = split_listen(listen)
    for port in range(first, first + _PORTS_TRIED if first else 1):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
        if port != first:
            typer.echo(f"Port {first} is taken; {port} is the next free one.")
        return f"{listen.rpartition(':')[0]}:{port}"
    return listen


def _leave_after(seconds: float) -> None:
    """End the process in any case: a thread that hangs in the database would keep it for ever."""

    def leave() -> None:
        _log.error("not stopped in time, leaving now")
        os._exit(1)

    timer = threading.Timer(seconds + _EXIT_GRACE_S, leave)
    timer.daemon = True
    timer.start()


def _settings(
    flags: Mapping[str, object | None], config: Path | None, more: list[str] | None
) -> Settings:
    given = {name: value for name, value in flags.items() if value is not None}
    for text in more or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationMistake(f"--set {text}: must be NAME=VALUE")
        given[name.strip()] = value
    return load(given, config)


def _fail(error: ConfigurationMistake | CannotStart) -> NoReturn:
    sys.stderr.write(f"hansard: {error}\n")
    code = EXIT_MISTAKE if isinstance(error, ConfigurationMistake) else EXIT_CANNOT_START
    raise typer.Exit(code)
