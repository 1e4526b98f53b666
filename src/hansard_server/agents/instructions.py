"""Instructions and descriptions of tools: templates, rendered for each turn anew."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator, Mapping

from hansard.v1 import agent_pb2
from hansard_server.agents.api import Json, TurnContext
from hansard_server.agents.json_text import struct_to_json
from hansard_server.agents.tools.catalog import AgentTool
from hansard_server.agents.velocity.budget import Budget
from hansard_server.domain.errors import AgentProcessingFailed, FieldViolation
from hansard_server.domain.values import dataclass

TEMPLATES_MAX_BYTES = 256 * 1024
"""All templates of an agent together."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the templates of one turn have become.

    Attributes:
        instructions: the texts of the agent's instructions, in order.
        descriptions: what the model is told of each tool, by configuration name.
    """

    instructions: tuple[str, ...]
    descriptions: Mapping[str, str]


async def render_templates(context: TurnContext, tools: Mapping[str, AgentTool]) -> Rendered:
    """Return the agent's templates, rendered under one budget.

    Raises AgentProcessingFailed, which names the template that can't be rendered and the place.
    """
    if any(map(is_template, _all_templates(context.agent))):
        # In a thread: it may take a tenth of a second.
        return await asyncio.to_thread(render_all, context, tools)
    return plain_texts(context, tools)


def plain_texts(context: TurnContext, tools: Mapping[str, AgentTool]) -> Rendered:
    """Return what `render_all` returns for an agent whose templates are plain texts."""
    return Rendered(
        tuple(filter(None, _templates(context.agent))),
        {name: tool.description for name, tool in tools.items()},
    )


def render_all(context: TurnContext, tools: Mapping[str, AgentTool]) -> Rendered:
    """Return the agent's templates, rendered. Raises AgentProcessingFailed."""
    # Many agents have plain texts. And not later: the budget's time begins to run.
    import hansard_server.agents.velocity.render  # noqa: F401, PLC0415

    budget = Budget()
    values = _values(context)
    descriptions = {
        name: _render(tool.description, values, budget, f"the description of the tool {name!r}")
        if tool.templated
        else tool.description
        for name, tool in tools.items()
    }
    values["tools"] = [
        {"name": name, "description": description} for name, description in descriptions.items()
    ]
    instructions = tuple(
        _render(template, values, budget, f"instruction {number}")
        for number, template in enumerate(_templates(context.agent), 1)
        if template
    )
    return Rendered(instructions, descriptions)


def find_template_faults(agent: agent_pb2.Agent) -> Iterator[FieldViolation]:
    """Yield what keeps a template from being read, with its line and column."""
    size_bytes = sum(len(template.encode()) for template in _all_templates(agent))
    if size_bytes > TEMPLATES_MAX_BYTES:
        yield FieldViolation(
            "first_step.instructions",
            f"the agent's templates have {size_bytes:,} bytes together, at most "
            f"{TEMPLATES_MAX_BYTES:,} are possible",
        )
        return
    for index, template in enumerate(_templates(agent)):
        yield from _fault(template, f"first_step.instructions[{index}].inline.template")
    for name in sorted(agent.tool_configurations):
        template = agent.tool_configurations[name].description_template
        yield from _fault(template, f"tool_configurations.{name}.description_template")


def is_template(text: str) -> bool:
    """Return whether rendering may change the text."""
    return "$" in text or "#" in text or "\\" in text


def _templates(agent: agent_pb2.Agent) -> list[str]:
    return [
        instruction.inline.template
        for instruction in agent.first_step.instructions
        if instruction.WhichOneof("instruction") == "inline"
    ]


def _all_templates(agent: agent_pb2.Agent) -> list[str]:
    tools = agent.tool_configurations.values()
    return [*_templates(agent), *(tool.description_template for tool in tools)]


def _values(context: TurnContext) -> dict[str, Json]:
    agent, session = context.agent, context.session
    today = dt.datetime.fromtimestamp(context.now_us / 1_000_000, dt.UTC).date()
    return {
        "agent": {
            "key": agent.key,
            "name": agent.name,
            "description": agent.description,
            "metadata": struct_to_json(agent.metadata),
        },
        "session": {
            "key": session.key,
            "name": session.name,
            "description": session.description,
            "metadata": struct_to_json(session.metadata),
        },
        "currentDate": today.isoformat(),
    }


def _render(template: str, values: Mapping[str, Json], budget: Budget, what: str) -> str:
    if not is_template(template):
        return template
    from hansard_server.agents.velocity.nodes import TemplateFault  # noqa: PLC0415
    from hansard_server.agents.velocity.render import render  # noqa: PLC0415

    try:
        return render(template, values, budget)
    except TemplateFault as fault:
        raise AgentProcessingFailed(f"{what} can't be rendered: {fault}") from None


def _fault(template: str, field: str) -> Iterator[FieldViolation]:
    if not is_template(template):
        return
    from hansard_server.agents.velocity.nodes import TemplateFault  # noqa: PLC0415
    from hansard_server.agents.velocity.parser import parse  # noqa: PLC0415

    try:
        parse(template)
    except TemplateFault as fault:
        yield FieldViolation(field, str(fault))
