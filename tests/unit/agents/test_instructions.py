"""Instructions and tool descriptions: checked when an agent is written, rendered for each turn."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import agent_pb2, session_pb2
from hansard_server.agents.api import TurnContext
from hansard_server.agents.configuration import check_agent
from hansard_server.agents.instructions import (
    Rendered,
    is_template,
    plain_texts,
    render_all,
    render_templates,
)
from hansard_server.agents.tools.built_in import BUILT_IN_TOOLS
from hansard_server.agents.tools.catalog import ToolCatalog
from hansard_server.domain.errors import AgentProcessingFailed, InvalidAgentConfiguration
from tests.support.agents import NOW_US, MemoryFiles, NoCorpora, make_agent

GUIDE = (
    "Always respond to the user in their preferred language: ${session.metadata.language}. If the "
    "language is 'en', use English. If it's 'es', use Spanish."
)


def agent_with(*templates: str) -> agent_pb2.Agent:
    agent = make_agent(tools=["artifact_read"])
    for template in templates:
        agent.first_step.instructions.add().inline.template = template
    return agent


def context_of(agent: agent_pb2.Agent, **metadata: object) -> TurnContext:
    session = session_pb2.Session(key="s1", name="One")
    json_format.ParseDict(metadata, session.metadata)
    return TurnContext(
        agent=agent, session=session, files=MemoryFiles(), corpora=NoCorpora(), now_us=NOW_US
    )


async def rendered(agent: agent_pb2.Agent, **metadata: object) -> Rendered:
    context = context_of(agent, **metadata)
    return await render_templates(
        context, ToolCatalog(*BUILT_IN_TOOLS.values()).tools_of(context.agent)
    )


@given(st.lists(st.text(max_size=20).filter(lambda text: not is_template(text)), max_size=4))
def test_plain_texts_are_what_they_would_be_rendered_to(templates: list[str]) -> None:
    agent = agent_with(*templates)
    if templates:
        agent.tool_configurations["artifact_read"].description_template = templates[0]
    context = context_of(agent, language="en")
    tools = ToolCatalog(*BUILT_IN_TOOLS.values()).tools_of(agent)
    assert plain_texts(context, tools) == render_all(context, tools)


async def test_the_guides_instruction() -> None:
    texts = (await rendered(agent_with(GUIDE), language="es")).instructions
    assert texts == (GUIDE.replace("${session.metadata.language}", "es"),)


async def test_what_templates_may_name() -> None:
    agent = agent_with(
        "$session.name $session.key $agent.name $agent.metadata.tier ${currentDate}",
        "",
        "#foreach($tool in $tools)$tool.name: $tool.description#end",
    )
    agent.metadata["tier"] = "gold"
    configuration = agent.tool_configurations["artifact_read"]
    configuration.description_template = "Reads for $session.name, plan $session.metadata.plan."
    made = await rendered(agent, plan="b")
    assert made.instructions == (
        "One s1 Support gold 2026-05-28",
        "artifact_read: Reads for One, plan b.",
    )
    assert made.descriptions == {"artifact_read": "Reads for One, plan b."}


async def test_a_tools_own_words_are_no_template() -> None:
    made = await rendered(agent_with("$x"))
    assert made.descriptions["artifact_read"] == BUILT_IN_TOOLS["artifact_read"].description


def test_faults_are_named_when_the_agent_is_written() -> None:
    agent = agent_with("fine", "one\n #if($x)")
    agent.tool_configurations["artifact_read"].description_template = "#end"
    with pytest.raises(InvalidAgentConfiguration) as caught:
        check_agent(agent)
    told = {v.field: v.description for v in caught.value.violations}
    assert told == {
        "first_step.instructions[1].inline.template": "line 2, column 2: #if has no #end",
        "tool_configurations.artifact_read.description_template": (
            "line 1, column 1: #end has no #if or #foreach before it"
        ),
    }


def test_all_templates_together_have_a_limit() -> None:
    check_agent(agent_with(*["x" * 64 * 1024] * 4))
    with pytest.raises(InvalidAgentConfiguration, match="262,145"):
        check_agent(agent_with(*["x" * 64 * 1024] * 4, "x"))


async def test_what_can_not_be_rendered_ends_the_turn() -> None:
    with pytest.raises(AgentProcessingFailed, match="instruction 2 can't be rendered: line 1"):
        await rendered(agent_with("ok", "$session.name.format('x')"))
