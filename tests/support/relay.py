"""A relay between PostgreSQL and who speaks to it, which counts round trips, and may delay them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import make_url


class Relay:
    """Passes bytes on between clients of a Unix socket and a server of another.

    Attributes:
        round_trips: how often some client spoke after it had heard, or for the first time.
    """

    def __init__(self, server: Path, *, delay_s: float = 0.0) -> None:
        """Speak to the server's socket; what clients say arrives after the delay."""
        self.round_trips = 0
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
            heard = threading.Event()
            heard.set()
            self._run(self._ask, client, server, heard)
            self._run(self._answer, server, client, heard)

    def _ask(self, client: socket.socket, server: socket.socket, heard: threading.Event) -> None:
        while said := client.recv(1 << 16):
            if heard.is_set():
                heard.clear()
                self.round_trips += 1
                time.sleep(self._delay_s)
            server.sendall(said)
        server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket, heard: threading.Event) -> None:
        while said := server.recv(1 << 16):
            heard.set()
            client.sendall(said)
        client.shutdown(socket.SHUT_WR)

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
