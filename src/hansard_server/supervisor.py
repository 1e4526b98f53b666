"""The parent of several workers: starts them on one port, keeps them up, and stops them together.

A worker gets its settings through a pipe and says through another that it serves. When the pipe
ends, its parent has gone, and it stops as for a signal: no worker outlives its parent.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import ExitStack, suppress

import structlog

from hansard_server import telemetry
from hansard_server.config import ConfigurationMistake, Settings, dump, split_listen
from hansard_server.stores import CannotStart, sqlite_path

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKER_COMMAND = (sys.executable, "-m", "hansard_server", "worker")
READY = b"ready\n"
_EXIT_GRACE_S = 1.0
"""After the drain's deadline; a worker that is there then is killed."""
_RESTART_FIRST_S = 0.2
_RESTART_LONGEST_S = 10.0
_LIVED_S = 30.0
"""A worker that has lived so long is started again at once."""

_log = structlog.get_logger("hansard.supervisor")


class Ended(Exception):  # noqa: N818 - a state of affairs
    """A worker ended before it served; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def supervise(settings: Settings) -> int:
    """Serve by `settings.workers` processes until a signal comes; return the exit code.

    Raises ConfigurationMistake, CannotStart.
    """
    telemetry.configure(settings.log_level)
    if sqlite_path(settings.store_url) is not None:
        raise ConfigurationMistake(
            f"workers: is {settings.workers}, and a SQLite database is for one process;"
            " several need PostgreSQL (--store postgresql://…)"
        )
    if split_listen(settings.peer_listen)[1]:
        raise ConfigurationMistake("peer_listen: with several workers its port must be 0")
    with ExitStack() as reserved:
        changes: dict[str, object] = {"workers": 1, "reuse_port": True}
        changes["listen"] = _reserve("listen", settings.listen, reserved)
        if settings.serves_http and "http_listen" in settings.model_fields_set:
            changes["http_listen"] = _reserve("http_listen", settings.http_listen, reserved)
        shared = settings.model_copy(update=changes)
        return asyncio.run(Supervisor(shared, settings.workers).run())


def _reserve(name: str, listen: str, reserved: ExitStack) -> str:
    """Bind the port without listening, so that it is the workers'; return host and port."""
    host, port = split_listen(listen)
    holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    reserved.enter_context(holder)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        raise CannotStart(f"{name}: can't listen on {listen}: {error.strerror}") from None
    return f"{listen.rpartition(':')[0]}:{holder.getsockname()[1]}"


class Supervisor:
    """Keeps so many workers of the same settings."""

    def __init__(self, settings: Settings, count: int) -> None:
        """Keep `count` of them; `run` starts them."""
        self._settings = settings
        self._count = count
        self._workers: set[asyncio.subprocess.Process] = set()
        self._stopping = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        """Return the exit code: 0 when all went, that of a worker that could not start."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        code = 0
        try:
            # One at first: what keeps it from starting is said once.
            first = await self._start()
            others = await asyncio.gather(*(self._start() for _ in range(self._count - 1)))
            _log.info("workers_serving", address=self._settings.listen, workers=self._count)
            keepers = [asyncio.create_task(self._keep(worker)) for worker in (first, *others)]
            await self._stopping.wait()
        except Ended as ended:
            code = 0 if self._stopping.is_set() else ended.code
            keepers = []
        await self._stop()
        for keeper in keepers:
            keeper.cancel()
        return code or (self._signals > 1 and 128 + signal.SIGTERM) or 0

    def _on_signal(self, number: signal.Signals) -> None:
        self._signals += 1
        self._stopping.set()
        for worker in self._workers:
            with suppress(ProcessLookupError):
                worker.send_signal(number)

    async def _start(self) -> asyncio.subprocess.Process:
        """Return a worker that serves. Raises Ended."""
        worker = await asyncio.create_subprocess_exec(
            *WORKER_COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        self._workers.add(worker)
        assert worker.stdin is not None  # noqa: S101 - for the type checker
        assert worker.stdout is not None  # noqa: S101
        with suppress(ConnectionError):
            worker.stdin.write(dump(self._settings) + b"\n")
            await worker.stdin.drain()
        if self._stopping.is_set():
            worker.terminate()
        if await worker.stdout.readline() != READY:
            code = await worker.wait()
            self._workers.discard(worker)
            raise Ended(code if code > 0 else 1)
        return worker

    async def _keep(self, worker: asyncio.subprocess.Process) -> None:
        """Have another one whenever a worker ends."""
        loop = asyncio.get_running_loop()
        pause_s = _RESTART_FIRST_S
        while True:
            started_at = loop.time()
            code = await worker.wait()
            self._workers.discard(worker)
            if self._stopping.is_set():
                return
            _log.warning("worker_ended", pid=worker.pid, code=code)
            if loop.time() - started_at > _LIVED_S:
                pause_s = _RESTART_FIRST_S
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _RESTART_LONGEST_S)
                if self._stopping.is_set():
                    return
                try:
                    worker = await self._start()
                    break
                except Ended as ended:
                    _log.warning("worker_did_not_start", code=ended.code)

    async def _stop(self) -> None:
        """Return when no worker is left."""
        self._stopping.set()
        workers = list(self._workers)
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.terminate()
        waiting = [asyncio.create_task(worker.wait()) for worker in workers]
        if not waiting:
            return
        _, late = await asyncio.wait(
            waiting, timeout=self._settings.drain_deadline_s + _EXIT_GRACE_S
        )
        if late:
            _log.error("workers_killed", workers=len(late))
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.kill()
        await asyncio.wait(waiting)
