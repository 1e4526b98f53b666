"""A connection to a Hansard server: a channel, the stubs of its services, and patience."""

from __future__ import annotations

import random
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc

from hansard.v1 import (
    agent_service_pb2_grpc,
    artifact_service_pb2_grpc,
    event_service_pb2_grpc,
    session_service_pb2_grpc,
    turn_service_pb2_grpc,
)
from hansard_client.errors import Mistake, StreamCut, describe, may_pass

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S: Final = 30.0

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 2.0
_OPTIONS: tuple[tuple[str, Any], ...] = (
    # A restarted server is found again within a second; grpc's own backoff grows to minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A server whose machine is gone is noticed, also while a stream is silent.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_LOOPBACK = ("127.", "localhost:", "[::1]:")

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Connection:
    """A channel and its stubs; a context manager that closes it.

    Attributes:
        target: where the server is, `host:port`.
        timeout_s: how long an answer, or a broken stream's return, is waited for.
        stopping: set from elsewhere, it keeps broken streams from being taken up again.
    """

    def __init__(
        self, target: str = DEFAULT_TARGET, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self.stopping = threading.Event()
        options = list(_OPTIONS)
        if target.startswith(_LOOPBACK):
            # No proxy leads to this machine, whatever the environment names.
            options.append(("grpc.enable_http_proxy", 0))
        self.channel = grpc.insecure_channel(target, options=options)
        self.agents = agent_service_pb2_grpc.AgentServiceStub(self.channel)
        self.sessions = session_service_pb2_grpc.SessionServiceStub(self.channel)
        self.events = event_service_pb2_grpc.EventServiceStub(self.channel)
        self.turns = turn_service_pb2_grpc.TurnServiceStub(self.channel)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.channel.close()

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Answer], request: Request
    ) -> Answer:
        """Return the answer of a unary call. Raises grpc.RpcError."""
        return method(request, timeout=self.timeout_s)

    def patience(self) -> Patience:
        """Return what decides whether a broken stream is taken up again."""
        return Patience(self)


class Patience:
    """Waits longer from one failure to the next, and gives up when nothing came for too long."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.progress()

    def progress(self) -> None:
        """Note that something came."""
        self._since = time.monotonic()
        self._wait_s = _FIRST_WAIT_S

    def wait(self, error: grpc.RpcError | StreamCut) -> None:
        """Wait before the next try; raise the error when it is none that may pass, or Mistake."""
        connection = self._connection
        if isinstance(error, grpc.RpcError) and not may_pass(error):
            raise error
        if connection.stopping.is_set():
            raise Mistake("stopped before the answer was complete") from None
        if time.monotonic() - self._since > connection.timeout_s:
            words = describe(error, connection.target) if isinstance(error, grpc.RpcError) else ""
            raise Mistake(
                f"the stream broke and could not be taken up again within "
                f"{connection.timeout_s:g} s: {words or 'it ends too early'}"
            ) from None
        connection.stopping.wait(self._wait_s * random.uniform(0.5, 1))  # noqa: S311 - no secret
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)


def new_request_id() -> str:
    """Return an id under which a call can be repeated safely."""
    return uuid.uuid4().hex
