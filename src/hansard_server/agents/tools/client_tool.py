"""A tool that the client runs: it has a schema here, and nothing to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from hansard.v1 import agent_pb2
from hansard_server.agents.api import Json, Tool, ToolContext, ToolError
from hansard_server.agents.json_text import parse_json
from hansard_server.domain.values import dataclass

CLIENT_TOOL = "client"
_ANY_OBJECT: Mapping[str, Json] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class ClientTool:
    """The tool, as a configuration has it."""

    input_schema: Mapping[str, Json] = field(default_factory=lambda: _ANY_OBJECT)
    name: str = CLIENT_TOOL
    description: str = "A tool that runs where the user is."

    def configured(self, configuration: agent_pb2.ToolConfiguration) -> Tool:
        """Return the tool with the configuration's schema. Raises NotJson."""
        text = configuration.client.input_schema_json
        return ClientTool(parse_json(text)) if text else self

    async def run(self, _arguments: Mapping[str, Json], _context: ToolContext) -> Json:
        """Raise ToolError: calls of it wait for the client instead."""
        raise ToolError("The tool can only be run by the client.")
