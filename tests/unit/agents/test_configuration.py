"""What agents can be configured like, and what their overrides do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format

from hansard.v1 import agent_pb2, session_pb2
from hansard_server.agents.configuration import check_agent
from hansard_server.agents.overrides import UnresolvedReference, resolve_overrides
from hansard_server.agents.tools.built_in import BUILT_IN_TOOLS
from hansard_server.agents.tools.catalog import ToolCatalog, describe_tools
from hansard_server.domain.errors import (
    AgentProcessingFailed,
    InvalidAgentConfiguration,
)
from tests.support.agents import MemoryFiles, MemoryRecorder, make_agent, message, run_turn

TOOLS = ("artifact_grep", "artifact_read")


def with_override(override: dict[str, Any]) -> agent_pb2.Agent:
    agent = make_agent(tools=TOOLS)
    configuration = agent.tool_configurations["artifact_read"]
    json_format.ParseDict(override, configuration.argument_override)
    return agent


def fields(agent: agent_pb2.Agent) -> list[str]:
    with pytest.raises(InvalidAgentConfiguration) as caught:
        check_agent(agent)
    return [violation.field for violation in caught.value.violations]


@pytest.mark.parametrize("model", ["hansard/scripted", "hansard/extractive", "acme/gpt"])
def test_good_agents_are_accepted(model: str) -> None:
    check_agent(make_agent(model, tools=TOOLS))


def test_models_under_our_own_prefix_must_exist() -> None:
    assert fields(make_agent("hansard/scriptde")) == ["model.name"]


def test_parameters_are_the_models_to_check() -> None:
    assert fields(make_agent(parameters={"script": 1})) == ["model.parameters.script"]
    assert fields(make_agent("hansard/extractive", {"top": 1})) == ["model.parameters.top"]
    check_agent(make_agent("acme/gpt", {"top": 1}))


def test_backoffs_must_fit_together() -> None:
    agent = make_agent()
    agent.model.retry.initial_backoff.seconds = 40
    assert fields(agent) == ["model.retry.max_backoff"]
    agent.model.retry.max_backoff.seconds = 40
    check_agent(agent)


def test_schemas_of_answers_are_checked() -> None:
    agent = make_agent()
    parser = agent.first_step.output_parser.structured
    parser.schema_name = "x"
    parser.json_schema_json = '{"type": "object"}'
    check_agent(agent)
    parser.json_schema_json = '{"type": "objekt"}'
    assert fields(agent) == ["first_step.output_parser.structured.json_schema_json"]
    agent.model.name = "hansard/extractive"
    parser.json_schema_json = "{}"
    assert fields(agent) == ["first_step.output_parser.structured"]


def test_overrides_must_name_arguments_and_things_that_can_be() -> None:
    path = "tool_configurations.artifact_read.argument_override"
    assert fields(with_override({"artefact": 1})) == [f"{path}.artefact"]
    assert fields(with_override({"artifact_id": {"$ref": "session.secret"}})) == [
        f"{path}.artifact_id.$ref"
    ]
    assert fields(with_override({"artifact_id": {"$ref": 1}})) == [f"{path}.artifact_id.$ref"]
    assert fields(with_override({"artifact_id": ["${env.HOME}"]})) == [f"{path}.artifact_id[0]"]
    assert fields(with_override({"artifact_id": {"$ref": "session.name", "x": 1}})) == [
        f"{path}.artifact_id"
    ]
    check_agent(with_override({"artifact_id": {"$ref": "session.metadata.file"}}))
    check_agent(with_override({"artifact_id": "art_${agent.metadata.a.b}", "start_line": 2}))


def test_references_are_resolved() -> None:
    session = session_pb2.Session(key="s1", name="One")
    json_format.ParseDict({"a": {"b": [1, "x"]}, "n": 3}, session.metadata)
    resolved = resolve_overrides(
        {
            "value": {"$ref": "session.metadata.a.b"},
            "text": "n=${session.metadata.n} in ${session.name}: ${session.metadata.a}",
            "deep": [{"x": {"$ref": "agent.key"}}],
            "literal": 7,
        },
        agent_pb2.Agent(key="support"),
        session,
    )
    assert resolved == {
        "value": [1, "x"],
        "text": 'n=3 in One: {"b":[1,"x"]}',
        "deep": [{"x": "support"}],
        "literal": 7,
    }
    for missing in ("session.metadata.x", "session.metadata.n.x", "session.__class__"):
        with pytest.raises(UnresolvedReference):
            resolve_overrides({"x": {"$ref": missing}}, agent_pb2.Agent(), session)


async def test_what_is_fixed_the_model_neither_sees_nor_changes() -> None:
    agent = with_override({"artifact_id": "art_mine_txt"})
    found = ToolCatalog(*BUILT_IN_TOOLS.values()).tools_of(agent)
    tools = describe_tools(found, {name: tool.description for name, tool in found.items()})
    schema = next(tool.input_schema for tool in tools if tool.kind == "artifact_read")
    assert "artifact_id" not in schema["properties"]
    assert "artifact_id" not in schema["required"]

    called = {"name": "artifact_read", "input": {"artifact_id": "art_yours_txt"}}
    json_format.ParseDict({"script": [{"tool_call": called}]}, agent.model.parameters)
    files = MemoryFiles({"mine.txt": b"mine", "yours.txt": b"yours"})
    record = await run_turn(agent, files=files)
    result = json.loads(record.outputs()[0].tool_output_json)
    assert result["lines"] == [{"line": 1, "text": "mine"}]


async def test_a_reference_to_nothing_ends_the_turn_and_runs_nothing() -> None:
    agent = with_override({"artifact_id": {"$ref": "session.metadata.file"}})
    json_format.ParseDict(
        {"script": [{"tool_call": {"name": "artifact_read"}}]}, agent.model.parameters
    )
    record = MemoryRecorder()
    record.store(message("Read it."))
    with pytest.raises(AgentProcessingFailed, match="file is not set"):
        await run_turn(agent, recorder=record)
    assert record.kinds == ["input_message", "tool_input"]
