"""Servers and clients as processes of their own, and what they cost."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_START_SECONDS = 60.0
_ANSWER_SECONDS = 120.0
_FILL_SECONDS = 300.0
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Served:
    """A server process that takes calls; `key` is its administrator's, empty where it asks none."""

    address: str
    pid: int
    key: str = ""
    http_address: str = ""
    request: str = ""

    @property
    def pids(self) -> list[int]:
        """The server's process, and those that it started."""
        return [self.pid, *_children(self.pid)]


@contextmanager
def serve(
    folder: Path,
    store_url: str,
    *more: str,
    insecure: bool = True,
    http: str = "off",
    program: Sequence[str] = ("-m", "hansard_server"),
) -> Iterator[Served]:
    """Give `hansard serve`, its log in a file; not insecure it is as it is shipped.

    `program` is another one that takes the same arguments.
    """
    command = [*program, "serve", "--listen", "127.0.0.1:0", "--http-listen", http]
    command += ["--data-dir", str(folder / "data"), "--store", store_url, *more]
    command += ["--insecure"] if insecure else []
    with _started(folder, command) as served:
        if insecure:
            yield served
        else:
            yield replace(served, key=(folder / "data" / "admin.key").read_text().strip())


@contextmanager
def serve_clock(folder: Path, store_url: str) -> Iterator[Served]:
    """Give Hansard as it is shipped, with the model that tells the time."""
    program = [str(_HERE / "clock_server.py")]
    with serve(folder, store_url, insecure=False, program=program) as served:
        yield served


@contextmanager
def serve_bare(folder: Path) -> Iterator[Served]:
    """Give the server that does nothing but answer."""
    with _started(folder, [str(_HERE / "bare_server.py")]) as served:
        yield served


@contextmanager
def serve_a2a(folder: Path, python: Path, url: str) -> Iterator[tuple[str, str]]:
    """Give the address of a2a-sdk's server, and a request for it as hexadecimal text."""
    with _started(folder, [str(_HERE / "a2a_server.py"), url], python=str(python)) as served:
        yield served.address, served.request


class Client:
    """A client process that makes calls when told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take over the process; `client` makes one."""
        self._process = process

    def begin(self, seconds: float, uncounted_s: float = 0.0) -> None:
        """Have it make calls for a time, and before that for one that is not counted."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds} {uncounted_s}\n" if uncounted_s else f"{seconds}\n")
        self._process.stdin.flush()

    def result(self, patience_s: float = _ANSWER_SECONDS) -> dict[str, Any]:
        """Wait, and return what it counted."""
        assert self._process.stdout is not None
        come, _, _ = select.select([self._process.stdout], [], [], patience_s)
        assert come, "the client does not answer"
        line = self._process.stdout.readline()
        assert line, "the client has ended"
        counted: dict[str, Any] = json.loads(line)
        return counted


@contextmanager
def client(
    address: str, workload: str, key: str = "", *more: object, program: str = "load_client.py"
) -> Iterator[Client]:
    """Give a client of one workload; see load_client."""
    with _client(program, address, workload, key, *map(str, more)) as client:
        yield client


@contextmanager
def watchers(address: str, count: int, session: str) -> Iterator[Client]:
    """Give a client with so many watches, all of them open; see watch_client."""
    with _client("watch_client.py", address, str(count), session) as client:
        client.result()
        yield client


@contextmanager
def peer(python: Path, what: str, url: str, length: int) -> Iterator[Client]:
    """Give a library at work in a process of its own, its session filled; see peer_client."""
    with _client("peer_client.py", what, url, str(length), python=str(python)) as client:
        client.result(_FILL_SECONDS)
        yield client


@contextmanager
def _client(script: str, *arguments: str, python: str = "") -> Iterator[Client]:
    with subprocess.Popen(
        [python or sys.executable, str(_HERE / script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=own_environment(python),
    ) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of all its children, ended ones too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    return cpu_seconds(pid) + ended + sum(map(_cpu_seconds_or_none, _children(pid)))


def _cpu_seconds_or_none(pid: int) -> float:
    try:
        return cpu_seconds(pid)
    except FileNotFoundError:
        return 0.0


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def memory_mib(pid: int) -> float:
    """Return what a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def _started(folder: Path, command: Sequence[str], *, python: str = "") -> Iterator[Served]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [python or sys.executable, *command],
            stderr=output,
            stdin=subprocess.PIPE,
            env=own_environment(python),
        ) as process,
    ):
        try:
            entry = _serving(process, log)
            yield Served(
                entry["address"],
                process.pid,
                http_address=entry.get("http", ""),
                request=entry.get("request", ""),
            )
        finally:
            process.terminate()
            try:
                process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _serving(process: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    """Return what the server said when it served."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                entry: dict[str, str] = json.loads(line)
                if entry["event"] == "serving":
                    return entry
        assert process.poll() is None, f"the server has ended:\n{log.read_text()}"
        time.sleep(0.005)
    raise AssertionError(f"the server does not serve:\n{log.read_text()}")


def own_environment(python: str = "") -> dict[str, str]:
    """Return the environment for a process that imports what this one does, or another Python."""
    if python:
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
