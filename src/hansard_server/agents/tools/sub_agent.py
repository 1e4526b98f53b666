"""`sub_agent`: another agent does a task in a session of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hansard.v1 import agent_pb2
from hansard_server.agents.api import Json, SubAgentTask, Tool, ToolContext, ToolError
from hansard_server.domain.values import dataclass

SUB_AGENT: Final = "sub_agent"
_TTI_MAX_MINUTES: Final = 52_560_000
_PROPERTIES: Final[Mapping[str, Json]] = {
    "message": {
        "type": "string",
        "minLength": 1,
        "description": "The whole task: the other agent knows nothing but this.",
    },
    "session_tti_minutes": {
        "type": "integer",
        "minimum": 0,
        "maximum": _TTI_MAX_MINUTES,
        "description": "Its session is deleted after so many idle minutes. Default: 0, never.",
    },
    "session_key": {
        "type": "string",
        "pattern": "^[0-9a-zA-Z_-]{1,50}$",
        "description": "Of an earlier answer, to go on in that session. Default: a new one.",
    },
}


@dataclass(frozen=True, slots=True)
class SubAgent:
    """Answers {agent_key, session_key, turn_id, answer}."""

    names_sessions: bool = True
    name: str = SUB_AGENT
    description: str = "Has another agent do a task, and answers what it says."

    @property
    def input_schema(self) -> Mapping[str, Json]:
        """The arguments."""
        properties = dict(_PROPERTIES)
        if not self.names_sessions:
            del properties["session_key"]
        return {
            "type": "object",
            "properties": properties,
            "required": ["message"],
            "additionalProperties": False,
        }

    def configured(self, configuration: agent_pb2.ToolConfiguration) -> Tool:
        """Return the tool with the arguments that its session mode has."""
        mode = configuration.sub_agent.sub_agent_configuration.session_mode
        return SubAgent(mode == agent_pb2.SUB_AGENT_SESSION_MODE_LLM_CONTROLLED)

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> Json:
        """Return the answer. Raises what SubAgents.run does."""
        if context.sub_agents is None:
            raise ToolError("There are no sub-agents here.")
        configuration = context.configuration.sub_agent.sub_agent_configuration
        answer = await context.sub_agents.run(
            SubAgentTask(
                tool_call_id=context.tool_call_id,
                name=context.name,
                configuration=configuration,
                message=arguments["message"],
                session_key=arguments.get("session_key", ""),
                tti_minutes=int(arguments.get("session_tti_minutes", 0)),
            )
        )
        return {
            "agent_key": configuration.agent_key,
            "session_key": answer.session_key,
            "turn_id": answer.turn_id,
            "answer": answer.text,
        }
