"""Servers for tests: one in this process on a port of its own; `hansard serve` as a process."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from hansard.v1 import (
    access_service_pb2_grpc,
    agent_service_pb2_grpc,
    artifact_service_pb2_grpc,
    corpus_service_pb2_grpc,
    event_service_pb2_grpc,
    session_service_pb2_grpc,
    turn_service_pb2_grpc,
)
from hansard_server.app import Server
from hansard_server.config import Settings, load
from hansard_server.domain.clock import Clock, now_us
from tests.support.invariants import check_store

T = TypeVar("T")
CHECK_VARIABLE = "HANSARD_TEST_CHECK_RECORDS"
"""When it is set, the oracle reads the record of every server that has stopped."""
READY_SECONDS = 60.0
DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Failure:
    """What a failed call told: code, reason, the fields that were wrong, facts, a time to wait."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    fields: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    retry_s: float | None = None
    details_bytes: int = 0


async def failure(call: Awaitable[object]) -> Failure:
    """Return how the call failed; an AssertionError when it did not."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return to_failure(error)
    raise AssertionError(f"the call succeeded: {answer!r}")


def to_failure(error: grpc.aio.AioRpcError) -> Failure:
    """Return what the error tells."""
    raw = b""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            raw = value
    status = status_pb2.Status.FromString(raw)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    seconds = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            seconds = retry.retry_delay.ToTimedelta().total_seconds()
    assert not raw or (info.domain == "hansard" and status.code == error.code().value[0])
    return Failure(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        fields=tuple(violation.field for violation in bad.field_violations),
        metadata=dict(info.metadata),
        retry_s=seconds,
        details_bytes=len(raw),
    )


@dataclass(frozen=True)
class Running:
    """A server of this process and a channel to it."""

    server: Server
    channel: grpc.aio.Channel

    @property
    def access(self) -> access_service_pb2_grpc.AccessServiceAsyncStub:
        return access_service_pb2_grpc.AccessServiceStub(self.channel)

    @property
    def agents(self) -> agent_service_pb2_grpc.AgentServiceAsyncStub:
        return agent_service_pb2_grpc.AgentServiceStub(self.channel)

    @property
    def sessions(self) -> session_service_pb2_grpc.SessionServiceAsyncStub:
        return session_service_pb2_grpc.SessionServiceStub(self.channel)

    @property
    def events(self) -> event_service_pb2_grpc.EventServiceAsyncStub:
        return event_service_pb2_grpc.EventServiceStub(self.channel)

    @property
    def turns(self) -> turn_service_pb2_grpc.TurnServiceAsyncStub:
        return turn_service_pb2_grpc.TurnServiceStub(self.channel)

    @property
    def artifacts(self) -> artifact_service_pb2_grpc.ArtifactServiceAsyncStub:
        return artifact_service_pb2_grpc.ArtifactServiceStub(self.channel)

    @property
    def corpora(self) -> corpus_service_pb2_grpc.CorpusServiceAsyncStub:
        return corpus_service_pb2_grpc.CorpusServiceStub(self.channel)

    def raw(self, method: str) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        """Return the unary call that takes and gives bytes: `hansard.v1.AgentService/GetAgent`."""
        return self.channel.unary_unary(f"/{method}")


def make_settings(folder: Path, store_url: str = "", **changes: object) -> Settings:
    """Return settings for a server on a free port, without HTTP, all its files in the folder.

    It lets everybody in unless the changes say `insecure=False`, as often as they come.
    """
    usual = {"listen": "127.0.0.1:0", "http_listen": "off", "insecure": True}
    usual |= {"agent_max_sessions_per_s": 0}
    usual |= {"data_dir": folder, "store": store_url}
    flags = {**usual, **changes}
    return load(flags)


@asynccontextmanager
async def running_server(settings: Settings, clock: Clock = now_us) -> AsyncIterator[Running]:
    """Give a server that runs in this process until the context ends."""
    server = await Server.start(settings, clock=clock)
    try:
        async with open_channel(server.address) as channel:
            yield Running(server, channel)
    finally:
        await server.stop()
    await asyncio.to_thread(_check_record, settings.store_url, settings.data_dir)


def _check_record(store_url: str, data_dir: Path) -> None:
    if os.environ.get(CHECK_VARIABLE):
        check_store(store_url, data_dir)


@asynccontextmanager
async def open_channel(
    address: str, *arguments: tuple[str, Any]
) -> AsyncIterator[grpc.aio.Channel]:
    """Give a channel of its own connection, with channel arguments of grpc."""
    # Channels of one process share connections otherwise, and with them their limits.
    options = [("grpc.use_local_subchannel_pool", 1), *arguments]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel


class ServeProcess:
    """`hansard serve` as a process. Its log is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the log line of the event; an AssertionError when the process ends without."""
        while True:
            line = self._arrived.get(timeout=READY_SECONDS)
            assert line is not None, f"ended before {event!r}:\n{self.log}"
            if line.startswith("{"):
                entry: dict[str, Any] = json.loads(line)
                if entry["event"] == event:
                    return entry

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = READY_SECONDS) -> int:
        """Return the exit code; TimeoutExpired when there is none in time."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def finish_reading(self) -> None:
        """Return when nobody can write to the log any more."""
        self._reader.join(READY_SECONDS)

    @property
    def log(self) -> str:
        """All that it wrote to standard error so far."""
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self._arrived.put(line)
        self._arrived.put(None)


@contextmanager
def serve_process(
    *arguments: str,
    environment: dict[str, str] | None = None,
    insecure: bool = True,
    module: str = "hansard_server",
) -> Iterator[ServeProcess]:
    """Give `hansard serve` with these arguments; it is killed if it still runs at the end.

    It has no HTTP door unless the arguments name one, and lets everybody in unless told otherwise.
    """
    if insecure:
        arguments = ("--insecure", *arguments)
    if "--http-listen" not in arguments:
        arguments = (*arguments, "--http-listen", "off")
    # The folders that this process imports from, so that it needs no installation either.
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-m", module, "serve", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
    ) as process:
        served = ServeProcess(process)
        try:
            yield served
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            # Its workers write to the same pipe, and end after it.
            served.finish_reading()
    given = dict(pairwise(arguments))
    if "--data-dir" in given:
        data_dir = Path(given["--data-dir"])
        store_url = given.get("--store", f"sqlite:///{data_dir / 'hansard.db'}")
        _check_record(store_url, data_dir)
