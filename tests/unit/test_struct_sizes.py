"""Free-form objects are measured in the bytes of a request, before those are parsed."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import agent_pb2, agent_service_pb2, event_service_pb2, session_service_pb2
from hansard_server.domain.errors import InvalidMetadata, InvalidRequest
from hansard_server.servicers.struct_sizes import check_struct_sizes

CreateAgent = agent_service_pb2.CreateAgentRequest
CreateSession = session_service_pb2.CreateSessionRequest
MAX = 1_000


def struct(size: int) -> Struct:
    """Return an object of so many bytes, serialized."""
    made = Struct()
    # Two lengths of three levels that take a second byte from 128 on.
    made.update({"k": "x" * (size - 12)})
    assert made.ByteSize() == size
    return made


def check(message: Message) -> None:
    check_struct_sizes(message.SerializeToString(), message.DESCRIPTOR, MAX)


def test_object_at_the_limit_and_one_past_it() -> None:
    tool = agent_pb2.ToolConfiguration
    made: dict[str, Any] = {
        "metadata": CreateSession(metadata=struct(MAX + 1)),
        "agent.metadata": agent_service_pb2.UpdateAgentRequest(agent={"metadata": struct(MAX + 1)}),
        "model.parameters": CreateAgent(model={"parameters": struct(MAX + 1)}),
        "tool_configurations[0].value.argument_override": CreateAgent(
            tool_configurations={"t": tool(argument_override=struct(MAX + 1))}
        ),
    }
    for path, message in made.items():
        with pytest.raises(InvalidMetadata) as refused:
            check(message)
        assert refused.value.violations[0].field == path
    check(CreateSession(name="x" * 2_000, metadata=struct(MAX)))
    tools = {f"t{number}": tool(argument_override=struct(MAX)) for number in range(9)}
    check(CreateAgent(tool_configurations=tools, metadata=struct(MAX), model=agent_pb2.Model()))


def test_what_comes_several_times_is_merged() -> None:
    once = CreateSession(metadata=struct(600)).SerializeToString()
    with pytest.raises(InvalidMetadata):
        check_struct_sizes(once * 2, CreateSession.DESCRIPTOR, MAX)


def test_many_fields_around_objects_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        check_struct_sizes(b"\x10\x01" * 10_001, CreateSession.DESCRIPTOR, MAX)
    plain = event_service_pb2.AppendEventsRequest
    check_struct_sizes(b"\x10\x01" * 10_001, plain.DESCRIPTOR, MAX)


@given(raw=st.binary(max_size=60))
def test_any_bytes_are_walked_through(raw: bytes) -> None:
    try:
        large = any(
            len(s.metadata.SerializeToString()) > 1 for s in [CreateSession.FromString(raw)]
        )
    except DecodeError:
        large = False
    try:
        check_struct_sizes(raw, CreateSession.DESCRIPTOR, 1)
    except InvalidMetadata:
        return
    assert not large


def test_refusal_is_quick() -> None:
    large = Struct()
    for number in range(60_000):
        large.fields[f"k{number}"].null_value = 0  # type: ignore[assignment]
    raw = CreateSession(metadata=large).SerializeToString()
    started = time.perf_counter()
    with pytest.raises(InvalidMetadata):
        check_struct_sizes(raw, CreateSession.DESCRIPTOR, 64 * 1024)
    assert time.perf_counter() - started < 0.02
