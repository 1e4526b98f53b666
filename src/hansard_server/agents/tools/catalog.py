"""The tool catalog: which tool a configuration means, and what its model is told of it."""

from __future__ import annotations

from collections.abc import Mapping

from hansard.v1 import agent_pb2
from hansard_server.agents.api import ConfiguredTool, Json, Tool, ToolDescription
from hansard_server.agents.json_text import struct_to_json
from hansard_server.agents.tools.sub_agent import SUB_AGENT
from hansard_server.domain.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTool:
    """A tool as one agent has it.

    Attributes:
        templated: `description` is a template of the agent's, not the tool's own words.
        override: the arguments that the configuration fixes, references and all.
        rerun_safe: it may run again under the same call after a crash.
        configuration: all of it.
    """

    tool: Tool
    description: str
    templated: bool
    override: Mapping[str, Json]
    rerun_safe: bool
    configuration: agent_pb2.ToolConfiguration


class ToolCatalog:
    """The tools that the server has, by the names of their fields in ToolConfiguration."""

    def __init__(self, *tools: Tool, configured: Mapping[str, Tool] | None = None) -> None:
        """Make a catalog of these tools, and of what certain configurations mean, by name."""
        self._tools = {tool.name: tool for tool in tools}
        self._configured = configured or {}

    def configured(self, tools: Mapping[str, Tool]) -> ToolCatalog:
        """Return this catalog with what the configurations of these names mean."""
        return ToolCatalog(*self._tools.values(), configured={**self._configured, **tools})

    def tools_of(self, agent: agent_pb2.Agent) -> dict[str, AgentTool]:
        """Return the agent's tools by configuration name, in the order of the names.

        A configuration whose tool the server does not have is left out.
        """
        found: dict[str, AgentTool] = {}
        for name in sorted(agent.tool_configurations):
            configuration = agent.tool_configurations[name]
            kind = configuration.WhichOneof("tool") or ""
            tool = self._configured.get(name) or self._tools.get(kind)
            if tool is not None:
                tool = configured_tool(tool, configuration)
                found[name] = AgentTool(
                    tool=tool,
                    description=configuration.description_template or tool.description,
                    templated=bool(configuration.description_template),
                    override=struct_to_json(configuration.argument_override),
                    # Run again, it joins the turn that it began.
                    rerun_safe=configuration.rerun_safe or kind == SUB_AGENT,
                    configuration=configuration,
                )
        return found


def configured_tool(tool: Tool, configuration: agent_pb2.ToolConfiguration) -> Tool:
    """Return the tool as the configuration has it: mostly itself."""
    return tool.configured(configuration) if isinstance(tool, ConfiguredTool) else tool


def describe_tools(
    tools: Mapping[str, AgentTool], descriptions: Mapping[str, str]
) -> tuple[ToolDescription, ...]:
    """Return the tools as the model sees them: without the arguments that are fixed."""
    return tuple(
        ToolDescription(
            name=name,
            description=descriptions[name],
            input_schema=_without(tool.tool.input_schema, tool.override),
            kind=tool.tool.name,
        )
        for name, tool in tools.items()
    )


def _without(schema: Mapping[str, Json], fixed: Mapping[str, Json]) -> Mapping[str, Json]:
    if not fixed:
        return schema
    properties = {k: v for k, v in schema.get("properties", {}).items() if k not in fixed}
    required = [name for name in schema.get("required", ()) if name not in fixed]
    return {**schema, "properties": properties, "required": required}
