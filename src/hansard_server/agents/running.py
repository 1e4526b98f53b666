"""Running: who answers a turn, and with which tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from hansard.v1 import agent_pb2
from hansard_server.agents.api import TurnContext, TurnRecorder
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.loop import run_agent
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.outside import Outside
from hansard_server.agents.tools.catalog import ToolCatalog

if TYPE_CHECKING:
    from hansard_server.agents.mcp.toolbox import McpToolbox


class AgentRunner:
    """Answers turns: the agent loop with what the agent's configuration needs around it."""

    def __init__(
        self, *, models: ModelCatalog, tools: ToolCatalog, outside: Outside, limits: AgentLimits
    ) -> None:
        """`outside` is what agents may reach."""
        self.models = models
        self._tools = tools
        self.outside = outside
        self.limits = limits
        self._toolbox: McpToolbox | None = None

    async def run(self, context: TurnContext, recorder: TurnRecorder) -> None:
        """Answer the turn's input; see run_agent and run_remote for what they raise."""
        async with self._tools_of(context.agent) as tools:
            # What was said is summarised by the agent's model in any case.
            if context.agent.HasField("remote_runtime") and context.compact is None:
                # Only those who have agents elsewhere need it.
                from hansard_server.agents.remote.runner import run_remote  # noqa: PLC0415

                await run_remote(
                    context, recorder, tools=tools, outside=self.outside, limits=self.limits
                )
                return
            await run_agent(context, recorder, models=self.models, tools=tools, limits=self.limits)

    async def close(self) -> None:
        """Return when what ended turns had open is closed."""
        if self._toolbox is not None:
            await self._toolbox.close()

    @asynccontextmanager
    async def _tools_of(self, agent: agent_pb2.Agent) -> AsyncIterator[ToolCatalog]:
        tools = agent.tool_configurations.values()
        if not any(tool.WhichOneof("tool") == "mcp" for tool in tools):
            yield self._tools
            return
        if self._toolbox is None:
            # The SDK is an extra.
            from hansard_server.agents.mcp.toolbox import McpToolbox  # noqa: PLC0415

            self._toolbox = McpToolbox(self.outside)
        async with self._toolbox.open(agent) as found:
            yield self._tools.configured(found)
