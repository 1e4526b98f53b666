"""What a server process has in use: what it says itself (measured_server), and what Linux says."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.server import ServeProcess

MODULE = "tests.support.measured_server"
"""What serve_process is told to run."""
POOL_MAX = 20
SETTLE_S = 60.0


@dataclass(frozen=True)
class InUse:
    """What a server has in use.

    `clients` are their connections; `files` counts all open files but those of the database, whose
    pool opens connections when it needs them and keeps them, up to POOL_MAX.
    """

    tasks: int
    calls: int
    feeds: int
    turns: int
    connections_held: int
    connections: int
    clients: int
    files: int
    threads: int
    memory_bytes: int


async def look(process: ServeProcess, port: int) -> InUse:
    """Return what the server has in use now."""
    process.send(signal.SIGUSR1)
    told = await asyncio.to_thread(process.wait_for, "in_use")
    folder = Path(f"/proc/{process.process.pid}")
    numbers = {
        line.partition(":")[0]: int(line.split()[1])
        for line in (folder / "status").read_text().splitlines()
        if line.startswith(("VmRSS:", "Threads:"))
    }
    names: list[str] = []
    for path in (folder / "fd").iterdir():
        # One that was closed since it was listed is none.
        with suppress(FileNotFoundError):
            names.append(str(path.readlink()))
    of_sqlite = sum(".db" in name for name in names)
    return InUse(
        **{name: value for name, value in told.items() if name != "event"},
        clients=connections_to(folder, port),
        files=len(names) - (of_sqlite or told["connections"]),
        threads=numbers["Threads"],
        memory_bytes=numbers["VmRSS"] * 1024,
    )


def connections_to(folder: Path, port: int) -> int:
    """Return how many established connections there are to a port (proc_pid_net(5))."""
    established = "01"
    lines = [
        line
        for family in ("tcp", "tcp6")
        for line in (folder / "net" / family).read_text().splitlines()[1:]
    ]
    rows = [line.split() for line in lines]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == established for row in rows)


async def settled(process: ServeProcess, port: int, before: InUse | None = None) -> InUse:
    """Return what is in use when no client, call or turn is, and no more tasks than before, if that
    is given; after a while, whatever is.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        gc.collect()  # the clients' connections are closed with the last that knows of them
        now = await look(process, port)
        idle = now.calls == now.feeds == now.turns == now.clients == 0
        if (idle and (before is None or is_back(now, before))) or time.monotonic() > deadline:
            return now
        await asyncio.sleep(0.1)


def is_back(now: InUse, before: InUse) -> bool:
    """Tell whether everything that can be counted is back where it was."""
    return (
        now.tasks <= before.tasks
        and now.connections_held <= before.connections_held
        and now.files <= before.files
    )
