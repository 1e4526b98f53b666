"""MCP servers for tests: started, killed, and asked what they did."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ports import free_port

PATHS = os.pathsep.join(path for path in sys.path if path)
READY_S = 60.0


@dataclass
class McpProcess:
    """A server at `url`, which may be killed and started again."""

    notes_path: Path
    port: int
    manner: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}/mcp"

    def start(self) -> None:
        """Return when it takes connections."""
        self.process = subprocess.Popen(
            [*command(self.notes_path, self.manner), "--port", str(self.port)],
            env={**os.environ, "PYTHONPATH": PATHS},
        )
        while True:
            assert self.process.poll() is None, "the MCP server has ended"
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return

    def kill(self) -> None:
        """Kill it, if it has not died by itself."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(READY_S)

    @property
    def notes(self) -> list[str]:
        """What it did."""
        return read_notes(self.notes_path)


def command(notes_path: Path, manner: str = "") -> list[str]:
    """Return the command of a server that talks over stdio."""
    words = [sys.executable, "-m", "tests.support.mcp_server", str(notes_path)]
    return [*words, "--manner", manner] if manner else words


@contextmanager
def mcp_process(folder: Path, manner: str = "") -> Iterator[McpProcess]:
    """Give a running server over streamable HTTP."""
    server = McpProcess(folder / "notes", free_port(), manner)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def read_notes(path: Path) -> list[str]:
    """Return what a server has noted."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


async def until_noted(path: Path, line: str, times: int = 1) -> None:
    """Return when the server has noted the line so often."""
    async with asyncio.timeout(READY_S):
        while True:
            if read_notes(path).count(line) >= times:
                return
            await asyncio.sleep(0.02)


def kill_noted(path: Path) -> None:
    """Kill the processes that have noted their ids."""
    for line in read_notes(path):
        word, _, pid = line.partition(" ")
        if word == "pid":
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue


def connections_file(path: Path, notes_path: Path, manner: str = "") -> Path:
    """Write settings that name a server over stdio `local`, and return the file."""
    program, *arguments = command(notes_path, manner)
    words = ", ".join(repr(word) for word in arguments)
    path.write_text(
        f"[mcp_servers.local]\ncommand = {program!r}\nargs = [{words}]\n"
        f"env = {{ PYTHONPATH = {PATHS!r} }}\n",
        encoding="utf-8",
    )
    return path
