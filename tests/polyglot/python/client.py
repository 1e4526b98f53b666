"""How this client reaches a server, and what it makes of a failed call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from hansard.v1 import (
    access_service_pb2_grpc,
    agent_service_pb2_grpc,
    artifact_service_pb2_grpc,
    event_service_pb2_grpc,
    session_service_pb2_grpc,
    turn_service_pb2_grpc,
)

DEADLINE_S = 120


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Sequence[tuple[str, str]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Authorize(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
):
    """Puts the API key on every call, gives it a deadline, and waits for a server that restarts."""

    def __init__(self, api_key: str) -> None:
        self._metadata = [("authorization", f"Bearer {api_key}")] if api_key else []

    def _intercept(self, go_on: Callable[..., Any], details: Any, request: Any) -> Any:
        changed = _Details(
            method=details.method,
            timeout=DEADLINE_S,
            metadata=self._metadata,
            credentials=None,
            wait_for_ready=True,
            compression=None,
        )
        return go_on(changed, request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _intercept  # type: ignore[assignment]


class Client:
    """The services of one server."""

    def __init__(self, api_key: str | None = None) -> None:
        key = os.environ.get("HANSARD_API_KEY", "") if api_key is None else api_key
        channel = grpc.insecure_channel(os.environ["HANSARD_TARGET"])
        authorized = grpc.intercept_channel(channel, _Authorize(key))
        self.access = access_service_pb2_grpc.AccessServiceStub(authorized)
        self.agents = agent_service_pb2_grpc.AgentServiceStub(authorized)
        self.sessions = session_service_pb2_grpc.SessionServiceStub(authorized)
        self.events = event_service_pb2_grpc.EventServiceStub(authorized)
        self.turns = turn_service_pb2_grpc.TurnServiceStub(authorized)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(authorized)


@dataclass
class Failure:
    """What a status told."""

    code: str
    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    quota: list[str] = field(default_factory=list)
    retry_s: float = 0.0


def to_failure(error: Any) -> Failure:
    """Return what the status of a failed call (a grpc.RpcError that is a grpc.Call) told."""
    status = rpc_status.from_call(error)
    name = error.code().name
    return Failure(name) if status is None else from_status(name, status)


def from_status(code: str, status: status_pb2.Status) -> Failure:
    """Return what a google.rpc.Status tells."""
    failure = Failure(code)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        quota = error_details_pb2.QuotaFailure()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            failure.reason, failure.domain = info.reason, info.domain
            failure.metadata = dict(info.metadata)
        elif detail.Unpack(bad):
            failure.fields = sorted(violation.field for violation in bad.field_violations)
        elif detail.Unpack(quota):
            failure.quota = [violation.subject for violation in quota.violations]
        elif detail.Unpack(retry):
            failure.retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    return failure
