"""Every rule at its boundary and one past it: code, reason, field, and nothing stored."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1 import agent_pb2, agent_service_pb2, session_pb2, session_service_pb2
from tests.support.server import Failure, Running, failure
from tests.wire.conftest import agent_request

ListAgents = agent_service_pb2.ListAgentsRequest
Update = agent_service_pb2.UpdateAgentRequest
EMOJI = "\N{GRINNING FACE}"
KIB = 1024
TOOLS: dict[str, Any] = {"artifact_grep": {}}


def nested(levels: int) -> dict[str, Any]:
    """Return an object of so many levels, itself the first; lists count too."""
    value: Any = {}
    for level in range(levels - 1):
        value = [value] if level % 2 else {"k": value}
    return value if isinstance(value, dict) else nested(levels - 1) | {"k": value}


def of_size(size: int) -> Struct:
    """Return a Struct of so many bytes."""
    struct = Struct()
    struct["k"] = ""
    for length in range(size - struct.ByteSize() - 8, size):
        struct["k"] = "x" * length
        if struct.ByteSize() == size:
            return struct
    raise AssertionError


def deep(levels: int) -> Struct:
    """Return a Struct of so many levels."""
    struct = Struct()
    inner = struct
    for _ in range(levels - 1):
        inner = inner.get_or_create_struct("k")
    return struct


def unset_value() -> Struct:
    struct = Struct()
    struct.fields["k"].CopyFrom(Value())
    return struct


ACCEPTED: dict[str, dict[str, Any]] = {
    "key of 50": {"key": "k" * 50},
    "name of 255": {"name": "n" * 255},
    "name of 255 four-byte characters": {"name": EMOJI * 255},
    "description of 4096": {"description": EMOJI * 4096},
    "metadata of 16 levels": {"metadata": deep(16)},
    "metadata of 64 KiB": {"metadata": of_size(64 * KIB)},
    "number below 2^53": {"metadata": {"n": 2.0**53 - 1, "m": -(2.0**53) + 1}},
    "request_id of 128": {"request_id": "~" * 128},
    "template of 64 KiB": {
        "first_step": {"instructions": [{"inline": {"template": "x" * 64 * KIB}}]}
    },
    "tool name of 64": {"tool_configurations": {"t" * 64: TOOLS}},
    "10 retries": {"model": {"name": "hansard/extractive", "retry": {"max_retries": 10}}},
}

INVALID = "INVALID_REQUEST"
METADATA = "INVALID_METADATA"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "key of 51": ({"key": "k" * 51}, INVALID, "key"),
    "key with a newline at its end": ({"key": "k\n"}, INVALID, "key"),
    "key with a slash": ({"key": "a/b"}, INVALID, "key"),
    "key of other letters": ({"key": "schlüssel"}, INVALID, "key"),
    "no name": ({"name": ""}, INVALID, "name"),
    "name of 256": ({"name": "n" * 256}, INVALID, "name"),
    "name of 256 four-byte characters": ({"name": EMOJI * 256}, INVALID, "name"),
    "NUL in the name": ({"name": "a\0b"}, INVALID, "name"),
    "description of 4097": ({"description": "d" * 4097}, INVALID, "description"),
    "no model": ({"model": None}, INVALID, "model"),
    "model without a name": ({"model": {}}, INVALID, "model.name"),
    "11 retries": (
        {"model": {"name": "x", "retry": {"max_retries": 11}}},
        INVALID,
        "model.retry.max_retries",
    ),
    "factor that is none": (
        {"model": {"name": "x", "retry": {"factor": math.nan}}},
        INVALID,
        "model.retry.factor",
    ),
    "request_id of 129": ({"request_id": "x" * 129}, INVALID, "request_id"),
    "request_id with a space": ({"request_id": "a b"}, INVALID, "request_id"),
    "instruction of no kind": (
        {"first_step": {"instructions": [{}]}},
        INVALID,
        "first_step.instructions[0].instruction",
    ),
    "template over 64 KiB": (
        {"first_step": {"instructions": [{"inline": {"template": "x" * (64 * KIB + 1)}}]}},
        INVALID,
        "first_step.instructions[0].inline.template",
    ),
    "unknown template type": (
        {"first_step": {"instructions": [{"inline": {"template_type": 99}}]}},
        INVALID,
        "first_step.instructions[0].inline.template_type",
    ),
    "tool of no kind": (
        {"tool_configurations": {"t": {}}},
        INVALID,
        "tool_configurations.t.tool",
    ),
    "tool name of 65": (
        {"tool_configurations": {"t" * 65: TOOLS}},
        INVALID,
        f'tool_configurations["{"t" * 64}"]',
    ),
    "metadata of 17 levels": ({"metadata": deep(17)}, METADATA, "metadata" + ".k" * 16),
    "lists are levels too": (
        {"metadata": {"k": nested(14) | {"l": [[[[[[[[[[[[[[[]]]]]]]]]]]]]]]}}},
        METADATA,
        "metadata.k.l" + "[0]" * 14,
    ),
    "metadata of 64 KiB and a byte": ({"metadata": of_size(64 * KIB + 1)}, METADATA, "metadata"),
    "NaN": ({"metadata": {"a": [1, {"b": math.nan}]}}, METADATA, "metadata.a[1].b"),
    "infinity": ({"metadata": {"a b": -math.inf}}, METADATA, 'metadata["a b"]'),
    "2^53": ({"metadata": {"n": 2.0**53}}, METADATA, "metadata.n"),
    "-2^53": ({"metadata": {"n": -(2.0**53)}}, METADATA, "metadata.n"),
    "no value": ({"metadata": unset_value()}, METADATA, "metadata.k"),
    "2^53 among the parameters": (
        {"model": {"name": "x", "parameters": {"n": 2.0**60}}},
        METADATA,
        "model.parameters.n",
    ),
    "NaN among the arguments": (
        {"tool_configurations": {"t": {**TOOLS, "argument_override": {"n": math.nan}}}},
        METADATA,
        "tool_configurations.t.argument_override.n",
    ),
}


def check(refused: Failure, reason: str, field: str) -> None:
    """Hold the failure to what is expected of every refused input."""
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == reason
    assert refused.fields[0] == field
    assert refused.message.startswith(f"{field}: ")


async def count_agents(running: Running) -> int:
    """Return how many agents there are."""
    return len((await running.agents.ListAgents(ListAgents())).agents)


@pytest.mark.parametrize("fields", ACCEPTED.values(), ids=ACCEPTED)
async def test_boundary_is_accepted(hansard: Running, fields: dict[str, Any]) -> None:
    made = await hansard.agents.CreateAgent(agent_request(**fields))
    got = await hansard.agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_key=made.key))
    assert got == made
    assert await count_agents(hansard) == 1


@pytest.mark.parametrize(("fields", "reason", "field"), REFUSED.values(), ids=REFUSED)
async def test_one_past_the_boundary_is_refused(
    plain: Running, fields: dict[str, Any], reason: str, field: str
) -> None:
    check(await failure(plain.agents.CreateAgent(agent_request(**fields))), reason, field)
    assert await count_agents(plain) == 0


@pytest.mark.parametrize(
    "paths",
    [
        *([], [""], ["nothing"], ["name", "key"], ["uid"], ["etag"], ["*"], ["Name"]),
        *(["tool_configurations."], ["tool_configurations.a.b"], ["tool_configurations.a b"]),
        *(["metadata.a"], ["model.name"], ["created_at"], ["toolConfigurations"], ["x" * 5_000]),
    ],
)
async def test_bad_mask_is_refused(plain: Running, paths: list[str]) -> None:
    made = await plain.agents.CreateAgent(agent_request(key="a"))
    body = agent_pb2.Agent(key="a", name="New", model={"name": "x"})
    refused = await failure(
        plain.agents.UpdateAgent(Update(agent=body, update_mask={"paths": paths}))
    )
    check(refused, INVALID, "update_mask")
    got = await plain.agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_key="a"))
    assert got == made


@pytest.mark.parametrize(
    ("body", "paths", "reason", "field"),
    [
        ({}, ["name"], INVALID, "agent.name"),
        ({"name": "x"}, ["model"], INVALID, "agent.model"),
        ({"metadata": {"n": 2.0**53}}, ["metadata"], METADATA, "agent.metadata.n"),
        (
            {"model": {"name": "x", "parameters": {"n": math.inf}}},
            ["model"],
            METADATA,
            "agent.model.parameters.n",
        ),
        (
            {"tool_configurations": {"t": {**TOOLS, "argument_override": {"n": math.inf}}}},
            ["tool_configurations.t"],
            METADATA,
            "agent.tool_configurations.t.argument_override.n",
        ),
    ],
)
async def test_bad_update_is_refused(
    plain: Running, body: dict[str, Any], paths: list[str], reason: str, field: str
) -> None:
    made = await plain.agents.CreateAgent(agent_request(key="a"))
    update = Update(agent=agent_pb2.Agent(key="a", **body), update_mask={"paths": paths})
    check(await failure(plain.agents.UpdateAgent(update)), reason, field)
    got = await plain.agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_key="a"))
    assert got == made


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_token": "x" * 2_049}, "page_token"),
        ({"filter": "x" * 1_025}, "filter"),
        ({"order": 9}, "order"),
        ({"created_before": Timestamp(seconds=-1)}, "created_before"),
        ({"created_before": Timestamp(seconds=10**18)}, "created_before"),
        ({"created_at_or_after": Timestamp(nanos=10**9)}, "created_at_or_after"),
    ],
)
async def test_bad_list_is_refused(plain: Running, fields: dict[str, Any], field: str) -> None:
    check(await failure(plain.agents.ListAgents(ListAgents(**fields))), INVALID, field)
    request = session_service_pb2.ListSessionsRequest(agent_key="a", **fields)
    await plain.agents.CreateAgent(agent_request(key="a"))
    check(await failure(plain.sessions.ListSessions(request)), INVALID, field)


async def test_bad_metadata_filter_is_refused(plain: Running) -> None:
    request = ListAgents(metadata={"n": math.nan})
    check(await failure(plain.agents.ListAgents(request)), METADATA, "metadata.n")


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"agent_key": "a\n"}, INVALID, "agent_key"),
        ({"agent_key": ""}, INVALID, "agent_key"),
        ({"key": "s\n"}, INVALID, "key"),
        ({"name": ""}, INVALID, "name"),
        ({"name": EMOJI * 256}, INVALID, "name"),
        ({"tti_minutes": -1}, INVALID, "tti_minutes"),
        ({"tti_minutes": 52_560_001}, INVALID, "tti_minutes"),
        ({"metadata": deep(17)}, METADATA, "metadata" + ".k" * 16),
        ({"from_session": {"session_key": ""}}, INVALID, "from_session.session_key"),
    ],
)
async def test_bad_session_is_refused(
    plain: Running, fields: dict[str, Any], reason: str, field: str
) -> None:
    await plain.agents.CreateAgent(agent_request(key="a"))
    usual = {"agent_key": "a", "name": "x"}
    request = session_service_pb2.CreateSessionRequest(**{**usual, **fields})
    check(await failure(plain.sessions.CreateSession(request)), reason, field)
    listed = await plain.sessions.ListSessions(
        session_service_pb2.ListSessionsRequest(agent_key="a")
    )
    assert not listed.sessions


async def test_longest_session_is_accepted(hansard: Running) -> None:
    await hansard.agents.CreateAgent(agent_request(key="a"))
    made = await hansard.sessions.CreateSession(
        session_service_pb2.CreateSessionRequest(
            agent_key="a", name=EMOJI * 255, tti_minutes=52_560_000, metadata=deep(16)
        )
    )
    assert made.name == EMOJI * 255
    body = session_pb2.Session(agent_key="a", key=made.key)
    update = session_service_pb2.UpdateSessionRequest(session=body, update_mask={"paths": ["key"]})
    check(await failure(hansard.sessions.UpdateSession(update)), INVALID, "update_mask")


async def test_unparsable_request_is_refused(plain: Running) -> None:
    create = plain.raw("hansard.v1.AgentService/CreateAgent")
    for raw in (b"\xff\xff", b"\x0a", b"\x12\x02\xff\xfe", b"\x0b" * 1_000):
        refused = await failure(create(raw))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, INVALID)


async def test_too_many_levels_for_a_parser_are_refused(plain: Running) -> None:
    inner = b""
    for _ in range(300):
        entry = b"\x0a\x01k\x12" + _length(b"\x2a" + _length(inner))
        inner = b"\x0a" + _length(entry)
    request = agent_request().SerializeToString() + b"\x3a" + _length(inner)
    refused = await failure(plain.raw("hansard.v1.AgentService/CreateAgent")(request))
    assert refused.reason in {INVALID, METADATA}


async def test_message_over_the_limit_is_refused_with_details(plain: Running) -> None:
    create = plain.raw("hansard.v1.AgentService/CreateAgent")
    limit = 4 * KIB * KIB
    # Field 99 is unknown, and skipped.
    fitting = agent_request().SerializeToString()
    rest = limit - len(fitting)
    filled = fitting + b"\x9a\x06" + _length(b"x" * (rest - 6))
    assert len(filled) == limit
    await create(filled)
    refused = await failure(create(filled + b"\x98\x06"))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "PAYLOAD_TOO_LARGE"
    assert refused.metadata == {"request_max_bytes": str(limit)}


async def test_many_faults_are_counted_and_the_first_are_named(plain: Running) -> None:
    names = {f"{'n' * 60} {number}": TOOLS for number in range(120)}
    refused = await failure(plain.agents.CreateAgent(agent_request(tool_configurations=names)))
    assert refused.reason == INVALID
    assert 1 < len(refused.fields) <= 20
    assert refused.metadata["violations"] == "120"
    assert refused.details_bytes <= 4 * KIB


def _length(data: bytes) -> bytes:
    size = len(data)
    head = b""
    while size >= 0x80:
        head += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + bytes([size]) + data
