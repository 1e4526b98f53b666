"""Hostile requests to agents and sessions: an answer with a reason, whatever comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansard.v1 import agent_service_pb2, session_service_pb2
from tests.support.databases import Databases
from tests.support.messages import hostile_bytes
from tests.support.server import Running, make_settings, running_server, to_failure
from tests.wire.conftest import agent_request

METHODS: list[MethodDescriptor] = [
    method
    for module in (agent_service_pb2, session_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@pytest.fixture
async def target(databases: Databases, database: str, tmp_path: Path) -> AsyncIterator[Running]:
    """Give a server that has agent `a` with session `s`."""
    url = databases.migrated(database)
    async with running_server(make_settings(tmp_path / "data", url)) as running:
        await running.agents.CreateAgent(agent_request(key="a"))
        await running.sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(agent_key="a", key="s", name="x")
        )
        yield running
    databases.drop(url)


@pytest.mark.parametrize("method", METHODS, ids=[method.full_name for method in METHODS])
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_hostile_request_is_answered(
    target: Running, method: MethodDescriptor, data: st.DataObject
) -> None:
    raw = data.draw(hostile_bytes(method.input_type))
    call = target.raw(f"{method.containing_service.full_name}/{method.name}")
    try:
        async with asyncio.timeout(10):
            await call(raw)
    except grpc.aio.AioRpcError as error:
        refused = to_failure(error)
        assert refused.code not in FAULTS, refused
        assert refused.reason, refused
