"""The HTTP door of a server: a gateway in a process of its own, which is a client like any other.

It reaches the server by a private Unix socket, with its callers' own credentials.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from hansard_gateway.sockets import listen
from hansard_server.config import Settings, split_listen
from hansard_server.stores import CannotStart

_log = structlog.get_logger("hansard.http")

# Another process of this server may be leaving the port right now.
_PORT_TRIES: Final = 20
_PORT_WAIT_S: Final = 0.1
_RESTART_FIRST_S: Final = 0.5
_RESTART_LONGEST_S: Final = 30.0
_LIVED_S: Final = 60.0
# The path of a Unix socket has at most 107 characters.
_FOLDER_MAX_CHARACTERS: Final = 70
# Of the drain's deadline: what is left then is for the server itself.
_DRAIN_SHARE: Final = 0.5


class HttpDoor:
    """A gateway process and what it needs; it is started again should it end by itself.

    Attributes:
        address: where it listens, `host:port`.
        target: where the server must listen for it.
    """

    def __init__(self, settings: Settings, listener: socket.socket, address: str) -> None:
        """Serve HTTP on the listener, which is the door's from now on."""
        self.address = address
        self._settings = settings
        self._listener = listener
        short = len(tempfile.gettempdir()) <= _FOLDER_MAX_CHARACTERS
        # It is made anew, and nobody else may enter it: so nobody else connects.
        parent = None if short else "/tmp"  # noqa: S108
        self._folder = Path(tempfile.mkdtemp(prefix="hansard-", dir=parent))
        self.target = f"unix:{self._folder / 'grpc.sock'}"
        self._child: Child | None = None
        self._draining = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: Settings) -> HttpDoor | None:
        """Return the door, bound to its port; None when it is off, or its default port is taken.

        Raises CannotStart when a port that was named is taken.
        """
        if not settings.serves_http:
            return None
        host, port = split_listen(settings.http_listen)
        named = "http_listen" in settings.model_fields_set
        tries = _PORT_TRIES if named else 1
        while True:
            tries -= 1
            try:
                listener = listen(host, port, reuse_port=settings.reuse_port)
            except OSError as error:
                if tries:
                    await asyncio.sleep(_PORT_WAIT_S)
                    continue
                where = settings.http_listen
                if named:
                    problem = f"http_listen: can't listen on {where}: {error.strerror}"
                    raise CannotStart(problem) from None
                _log.warning("no HTTP: the default port is taken", http_listen=where)
                return None
            shown = settings.http_listen.rpartition(":")[0]
            return cls(settings, listener, f"{shown}:{listener.getsockname()[1]}")

    async def start(self) -> None:
        """Start the process, and have it started again should it end."""
        child = await self._spawn()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(child), name="http_door")

    def begin_drain(self) -> None:
        """Tell the process to stop: its streams end with the place to resume from."""
        self._draining.set()
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)

    async def close(self) -> None:
        """Stop the process and give everything back."""
        self.begin_drain()
        try:
            if self._keeper is not None:
                await self._keeper
        finally:
            if self._child is not None:
                self._child.send_signal(signal.SIGKILL)
            self._listener.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _keep(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        wait_s = _RESTART_FIRST_S
        while True:
            began = loop.time()
            await child.ended.wait()
            if self._draining.is_set():
                return
            if loop.time() - began > _LIVED_S:
                wait_s = _RESTART_FIRST_S
            _log.error("the HTTP door ended; it is started again", code=child.code, wait_s=wait_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._draining.wait()
                    return
            wait_s = min(wait_s * 2, _RESTART_LONGEST_S)
            child = await self._spawn()

    async def _spawn(self) -> Child:
        told = {
            "listener": self._listener.fileno(),
            "target": self.target,
            "log_level": self._settings.log_level,
            "options": {
                "cors_origins": self._settings.cors_origins,
                "drain_deadline_s": self._settings.drain_deadline_s * _DRAIN_SHARE,
            },
        }
        self._child = await asyncio.to_thread(
            Child, json.dumps(told).encode(), self._listener.fileno(), asyncio.get_running_loop()
        )
        return self._child


class Child:
    """A gateway process.

    Attributes:
        ended: set when it has ended.
    """

    def __init__(self, told: bytes, listener: int, loop: asyncio.AbstractEventLoop) -> None:
        """Start it. `loop` is where `ended` is waited for."""
        self.ended = asyncio.Event()
        # The event loop's own way to start a process forks, which grpc's threads do not bear well.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hansard_gateway"],
            stdin=subprocess.PIPE,
            pass_fds=[listener],
            # What is typed at the server's terminal is for the server, which tells its door.
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.write(told + b"\n")
        self._process.stdin.flush()

        def wait() -> None:
            self._process.wait()
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self.ended.set)

        threading.Thread(target=wait, name="http_door", daemon=True).start()

    @property
    def code(self) -> int | None:
        """Its exit code, when it has ended."""
        return self._process.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        self._process.send_signal(number)
