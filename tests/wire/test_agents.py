"""Agents through the wire: what is stored, what replaces what, what a repeat gives."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from hansard.v1 import agent_pb2, agent_service_pb2
from tests.support.server import Running, failure
from tests.wire.conftest import agent_request

Update = agent_service_pb2.UpdateAgentRequest
Get = agent_service_pb2.GetAgentRequest
Delete = agent_service_pb2.DeleteAgentRequest


async def test_created_agent_is_what_was_asked_for(hansard: Running) -> None:
    request = agent_request(
        key="support",
        description="Helps",
        first_step={"instructions": [{"inline": {"name": "i", "template": "Be kind."}}]},
        tool_configurations={
            "grep": {"artifact_grep": {}, "argument_override": {"context_lines": 1}}
        },
        metadata={"team": {"name": "x", "ids": [1, 2.5, None, True]}},
    )
    made = await hansard.agents.CreateAgent(request)
    assert made == await hansard.agents.GetAgent(Get(agent_key="support"))
    shown = MessageToDict(made, preserving_proto_field_name=True)
    assert shown["metadata"] == {"team": {"name": "x", "ids": [1, 2.5, None, True]}}
    assert made.first_step == request.first_step
    assert made.tool_configurations["grep"] == request.tool_configurations["grep"]
    assert made.enabled
    assert made.uid
    assert made.etag
    assert made.created_at == made.updated_at


async def test_key_is_made_from_the_name(hansard: Running) -> None:
    made = await asyncio.gather(
        *(hansard.agents.CreateAgent(agent_request(name="Customer #1 …")) for _ in range(5))
    )
    assert len({agent.key for agent in made}) == 5
    for agent in made:
        assert re.fullmatch(r"agt_customer_1_[0-9a-z]{6}", agent.key)


async def test_made_key_that_is_taken_is_made_again(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter(["agt_same", "agt_same", "agt_other"])
    monkeypatch.setattr("hansard_server.domain.keys.make_agent_key", lambda _name: next(made))
    first = await hansard.agents.CreateAgent(agent_request())
    second = await hansard.agents.CreateAgent(agent_request())
    assert (first.key, second.key) == ("agt_same", "agt_other")


async def test_taken_key_is_refused(hansard: Running) -> None:
    await hansard.agents.CreateAgent(agent_request(key="a"))
    refused = await failure(hansard.agents.CreateAgent(agent_request(key="a")))
    assert refused.reason == "AGENT_ALREADY_EXISTS"
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS


async def test_repeated_request_gives_the_first_answer(hansard: Running) -> None:
    request = agent_request(request_id="r1", metadata={"b": 1, "a": 2})
    first = await hansard.agents.CreateAgent(request)
    changed = agent_pb2.Agent(key=first.key, name="New", metadata={"c": 3})
    await hansard.agents.UpdateAgent(
        Update(agent=changed, update_mask={"paths": ["name", "metadata"]})
    )
    assert await hansard.agents.CreateAgent(request) == first
    # Written out or left to the default, `enabled` says the same.
    assert (
        await hansard.agents.CreateAgent(
            agent_request(request_id="r1", metadata={"a": 2, "b": 1}, enabled=True)
        )
        == first
    )
    await hansard.agents.DeleteAgent(Delete(agent_key=first.key))
    assert await hansard.agents.CreateAgent(request) == first
    assert (await failure(hansard.agents.GetAgent(Get(agent_key=first.key)))).reason == (
        "AGENT_NOT_FOUND"
    )


async def test_concurrent_repeats_make_one_agent(hansard: Running) -> None:
    request = agent_request(request_id="r1")
    answers = await asyncio.gather(*(hansard.agents.CreateAgent(request) for _ in range(8)))
    assert {answer.uid for answer in answers} == {answers[0].uid}
    listed = await hansard.agents.ListAgents(agent_service_pb2.ListAgentsRequest())
    assert len(listed.agents) == 1


async def test_request_id_with_other_content_is_refused_before_all_else(hansard: Running) -> None:
    await hansard.agents.CreateAgent(agent_request(key="a", request_id="r1"))
    for other in (
        agent_request(key="a", request_id="r1", name="Other"),
        agent_request(key="a", request_id="r1", enabled=False),
        agent_request(key="a", request_id="r1", model={"name": "hansard/nobody"}),
    ):
        refused = await failure(hansard.agents.CreateAgent(other))
        assert refused.reason == "REQUEST_ID_REUSED"
        assert refused.code is grpc.StatusCode.ABORTED


async def test_refused_call_claims_nothing(hansard: Running) -> None:
    await hansard.agents.CreateAgent(agent_request(key="a"))
    refused = await failure(hansard.agents.CreateAgent(agent_request(key="a", request_id="r1")))
    assert refused.reason == "AGENT_ALREADY_EXISTS"
    await hansard.agents.CreateAgent(agent_request(key="b", request_id="r1"))


async def test_update_replaces_what_the_mask_names(hansard: Running) -> None:
    made = await hansard.agents.CreateAgent(
        agent_request(
            key="a",
            description="old",
            metadata={"a": 1, "b": 2},
            tool_configurations={"one": {"artifact_grep": {}}, "two": {"artifact_grep": {}}},
            enabled=False,
        )
    )
    body = agent_pb2.Agent(
        key="a",
        etag=made.etag,
        name="not taken",
        metadata={"b": 3},
        tool_configurations={"two": {"artifact_read": {}}, "three": {"artifact_read": {}}},
    )
    updated = await hansard.agents.UpdateAgent(
        Update(
            agent=body,
            update_mask={"paths": ["metadata", "tool_configurations.two", "enabled", "metadata"]},
        )
    )
    assert dict(updated.metadata) == {"b": 3}
    assert set(updated.tool_configurations) == {"one", "two"}
    assert updated.tool_configurations["two"].HasField("artifact_read")
    assert updated.enabled
    assert (updated.name, updated.description, updated.model) == (
        made.name,
        made.description,
        made.model,
    )
    assert updated.etag != made.etag
    assert updated.uid == made.uid
    assert updated == await hansard.agents.GetAgent(Get(agent_key="a"))
    removed = await hansard.agents.UpdateAgent(
        Update(
            agent=agent_pb2.Agent(key="a", tool_configurations={"new": {"artifact_read": {}}}),
            update_mask={"paths": ["tool_configurations.one", "tool_configurations.new"]},
        )
    )
    assert set(removed.tool_configurations) == {"two", "new"}
    whole = await hansard.agents.UpdateAgent(
        Update(agent=agent_pb2.Agent(key="a"), update_mask={"paths": ["tool_configurations"]})
    )
    assert not whole.tool_configurations


async def test_update_with_an_old_etag_is_refused(hansard: Running) -> None:
    made = await hansard.agents.CreateAgent(agent_request(key="a"))
    body = agent_pb2.Agent(key="a", name="New", etag=made.etag)
    update = Update(agent=body, update_mask={"paths": ["name"]})
    await hansard.agents.UpdateAgent(update)
    refused = await failure(hansard.agents.UpdateAgent(update))
    assert (refused.reason, refused.code) == ("ETAG_MISMATCH", grpc.StatusCode.ABORTED)


async def test_update_is_held_to_what_an_agent_can_do(plain: Running) -> None:
    await plain.agents.CreateAgent(agent_request(key="a"))
    parser = {"structured": {"schema_name": "s", "json_schema_json": '{"type": "objekt"}'}}
    body = agent_pb2.Agent(key="a", first_step={"output_parser": parser})
    refused = await failure(
        plain.agents.UpdateAgent(Update(agent=body, update_mask={"paths": ["first_step"]}))
    )
    # The model of this agent has no such answers, and the schema can't be used.
    path = "agent.first_step.output_parser.structured"
    fields = (path, f"{path}.json_schema_json")
    assert (refused.reason, refused.fields) == ("INVALID_AGENT_CONFIGURATION", fields)


async def test_update_may_not_make_more_tools_than_an_agent_has(plain: Running) -> None:
    tools: dict[str, Any] = {f"t{number}": {"artifact_read": {}} for number in range(128)}
    await plain.agents.CreateAgent(agent_request(key="a", tool_configurations=tools))
    body = agent_pb2.Agent(key="a", tool_configurations={"more": {"artifact_read": {}}})
    refused = await failure(
        plain.agents.UpdateAgent(
            Update(agent=body, update_mask={"paths": ["tool_configurations.more"]})
        )
    )
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ("agent.tool_configurations",))


async def test_configuration_is_checked_on_creation(plain: Running) -> None:
    refused = await failure(
        plain.agents.CreateAgent(agent_request(model={"name": "hansard/nobody"}))
    )
    assert refused.reason == "INVALID_AGENT_CONFIGURATION"
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.fields == ("model.name",)


async def test_deleted_agent_is_gone_and_its_key_free(hansard: Running) -> None:
    made = await hansard.agents.CreateAgent(agent_request(key="a"))
    await hansard.agents.DeleteAgent(Delete(agent_key="a"))
    for call in (
        hansard.agents.GetAgent(Get(agent_key="a")),
        hansard.agents.DeleteAgent(Delete(agent_key="a")),
        hansard.agents.UpdateAgent(
            Update(agent=agent_pb2.Agent(key="a", name="x"), update_mask={"paths": ["name"]})
        ),
    ):
        refused = await failure(call)
        assert (refused.reason, refused.code) == ("AGENT_NOT_FOUND", grpc.StatusCode.NOT_FOUND)
    again = await hansard.agents.CreateAgent(agent_request(key="a"))
    assert again.uid != made.uid
