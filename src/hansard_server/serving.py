"""Serving as a process does: until a signal comes, and never longer than was said."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial

import structlog
import typer
import uvloop

from hansard_server import telemetry
from hansard_server.access.tenants import ADMIN_KEY_FILE
from hansard_server.app import Server
from hansard_server.config import Settings, split_listen
from hansard_server.stores import migrate_store, sqlite_path

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_SIGNAL_S = 0.5
"""Signals so close are one: `timeout` and others send theirs to the process and to its group."""
# For the interpreter's own end, after which nothing may keep the process.
_EXIT_GRACE_S = 0.5
_PORTS_TRIED = 50
_COLLECTOR_THRESHOLDS = (10_000, 20, 50)

_log = structlog.get_logger("hansard.server")


def serve(settings: Settings) -> None:
    """Serve until a signal comes. Raises ConfigurationMistake, CannotStart."""
    telemetry.configure(settings.log_level)
    uvloop.run(run(settings))


def serve_as_worker(settings: Settings) -> None:
    """Serve as one of several, until a signal comes or the parent has gone. Raises as `serve`."""
    telemetry.configure(settings.log_level)
    threading.Thread(target=_follow_parent, name="parent", daemon=True).start()
    uvloop.run(run(settings, on_ready=_tell_parent))


def serve_demo(wanted: Settings) -> None:
    """Serve on the next port that is free, and hold a conversation. Raises as `serve`."""
    settings = wanted.model_copy(update={"listen": _free_listen(wanted.listen)})
    telemetry.configure(settings.log_level)
    uvloop.run(run(settings, beside=partial(Conversation, settings)))


def migrate(settings: Settings) -> None:
    """Bring the database to the schema of this version. Raises as `serve`."""
    telemetry.configure(settings.log_level)
    file = sqlite_path(settings.store_url)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    migrate_store(settings.store_url)


class Conversation:
    """A first conversation with a server of this process."""

    def __init__(self, settings: Settings, address: str) -> None:
        self._address = address
        file = settings.data_dir / ADMIN_KEY_FILE
        self._key_file = None if settings.insecure or not file.exists() else file
        key = self._key_file.read_text(encoding="ascii").strip() if self._key_file else ""
        # A server alone needs no client.
        from hansard_client import Hansard  # noqa: PLC0415

        self._hansard = Hansard(address, api_key=key)

    def run(self) -> None:
        """Hold it, and say where the server is."""
        from hansard_client.commands.demo import Demo  # noqa: PLC0415

        typer.echo(f"Serving at {self._address}.")
        Demo(self._hansard, self._key_file).run()
        if not self._hansard.closed:
            typer.echo(f"Still serving at {self._address}. Ctrl-C stops.")

    def stop(self) -> None:
        """End it."""
        self._hansard.close()


async def run(
    settings: Settings,
    *,
    beside: Callable[[str], Conversation] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal comes, then drain. Raises ConfigurationMistake, CannotStart.

    `beside` makes what is run in a thread meanwhile, of the server's address; `on_ready` is called
    when calls are taken.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    first_at = 0.0

    def on_signal(number: int) -> None:
        nonlocal first_at
        if signalled.is_set():
            if loop.time() - first_at < _SAME_SIGNAL_S:
                return
            _log.warning("cut short by a second signal")
            os._exit(128 + number)
        first_at = loop.time()
        signalled.set()
        _leave_after(settings.drain_deadline_s)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    server = await Server.start(settings)
    _calm_collector()
    on_ready()
    conversation = beside and beside(server.address)
    task = conversation and asyncio.create_task(asyncio.to_thread(conversation.run))
    await signalled.wait()
    if conversation:
        conversation.stop()
    await server.stop()
    if task:
        await task


def _calm_collector() -> None:
    """Keep the garbage collector from walking again and again over what lasts.

    With a thousand streams open it took a third of the time of each delivery. What is garbage by
    now is some hundred objects, and looking for them would keep the first calls waiting.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)
    gc.enable()


def _tell_parent() -> None:
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()


def _follow_parent() -> None:
    """Stop when the parent ends, however it does: then the pipe to it has an end."""
    # Not by sys.stdin, whose lock the interpreter wants at its end.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


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
