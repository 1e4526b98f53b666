"""A relay between PostgreSQL and who speaks to it, which counts round trips, and may delay them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

_READY = b"Z\0\0\0\5"
"""A ReadyForQuery: with it, and a byte of state, all that PostgreSQL answers ends. What it says of
an error may come before, while it still is asked."""
_FLUSH = b"H\0\0\0\4"
"""A Flush, which psycopg says at the very end, and which has no answer."""


@dataclass(slots=True)
class _Line:
    client: socket.socket
    server: socket.socket
    heard: bool = True
    counts: bool = False
    swallowing: bool = False
    heard_last: bytes = b""


class Relay:
    """Passes bytes on between clients of a Unix socket and a server of another.

    Attributes:
        round_trips: how often some client spoke after it had its answer, or for the first time.
        counted: only those count who have said this, at any time before.
    """

    def __init__(self, server: Path, *, delay_s: float = 0.0) -> None:
        """Speak to the server's socket; what clients say arrives after the delay."""
        self.round_trips = 0
        self.counted = b""
        self._swallow: bytes | None = None
        self._lock = threading.Lock()
        self._server = server
        self._delay_s = delay_s
        self._sockets: list[socket.socket] = []

    def listen(self, path: Path) -> None:
        """Take clients at a socket, until `close`."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self._sockets.append(listener)
        self._run(self._accept, listener)

    def swallow(self, words: bytes) -> None:
        """End the connection of who says these words next, and counts, when it is answered."""
        self._swallow = words

    @property
    def has_swallowed(self) -> bool:
        """Whether that has happened."""
        return self._swallow is None

    def close(self) -> None:
        """End all connections."""
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._server))
            self._sockets += [client, server]
            line = _Line(client, server)
            self._run(self._ask, line)
            self._run(self._answer, line)

    def _ask(self, line: _Line) -> None:
        while said := line.client.recv(1 << 16):
            line.counts = line.counts or self.counted in said
            if line.heard and said != _FLUSH:
                line.heard = False
                if line.counts:
                    # Several lines count, each by a thread of its own.
                    with self._lock:
                        self.round_trips += 1
                time.sleep(self._delay_s)
            if line.counts and self._swallow is not None and self._swallow in said:
                self._swallow = None
                line.swallowing = True
            line.server.sendall(said)
        line.server.shutdown(socket.SHUT_WR)

    def _answer(self, line: _Line) -> None:
        while said := line.server.recv(1 << 16):
            if line.swallowing:
                line.server.shutdown(socket.SHUT_RDWR)
                break
            line.heard_last = (line.heard_last + said)[-6:]
            line.heard = line.heard_last.startswith(_READY)
            line.client.sendall(said)
        line.client.shutdown(socket.SHUT_WR)

    def _run(self, work: Any, *arguments: Any) -> None:
        def run() -> None:
            # Either end may go away.
            with suppress(OSError):
                work(*arguments)

        threading.Thread(target=run, daemon=True).start()


@contextmanager
def relayed(url: str, folder: Path, *, delay_s: float = 0.0) -> Iterator[tuple[str, Relay]]:
    """Give the URL of the same PostgreSQL database through a relay, and the relay."""
    parsed = make_url(url)
    name = f".s.PGSQL.{parsed.port or 5432}"
    relay = Relay(Path(str(parsed.query["host"])) / name, delay_s=delay_s)
    folder.mkdir(parents=True, exist_ok=True)
    relay.listen(folder / name)
    try:
        through = parsed.update_query_dict({"host": str(folder)})
        yield through.render_as_string(hide_password=False), relay
    finally:
        relay.close()
