"""AgentService on the wire."""

from __future__ import annotations

from typing import Any

import grpc.aio

from hansard.v1 import agent_pb2, agent_service_pb2, agent_service_pb2_grpc
from hansard_server.resources.agents import Agents
from hansard_server.servicers.caller import current_caller, current_tenant
from hansard_server.servicers.convert import to_agent

Context = grpc.aio.ServicerContext[Any, Any]


class AgentServicer(agent_service_pb2_grpc.AgentServiceServicer):
    """Converts, calls, converts."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def CreateAgent(
        self, request: agent_service_pb2.CreateAgentRequest, _context: Context
    ) -> agent_pb2.Agent:
        """See the contract."""
        return to_agent(await self._agents.create(current_tenant(), request))

    async def GetAgent(
        self, request: agent_service_pb2.GetAgentRequest, _context: Context
    ) -> agent_pb2.Agent:
        """See the contract."""
        return to_agent(await self._agents.get(current_caller(), request))

    async def ListAgents(
        self, request: agent_service_pb2.ListAgentsRequest, _context: Context
    ) -> agent_service_pb2.ListAgentsResponse:
        """See the contract."""
        page = await self._agents.list(current_caller(), request)
        return agent_service_pb2.ListAgentsResponse(
            agents=[to_agent(record) for record in page.items], next_page_token=page.next_token
        )

    async def UpdateAgent(
        self, request: agent_service_pb2.UpdateAgentRequest, _context: Context
    ) -> agent_pb2.Agent:
        """See the contract."""
        return to_agent(await self._agents.update(current_tenant(), request))

    async def DeleteAgent(
        self, request: agent_service_pb2.DeleteAgentRequest, _context: Context
    ) -> agent_service_pb2.DeleteAgentResponse:
        """See the contract."""
        await self._agents.delete(current_tenant(), request)
        return agent_service_pb2.DeleteAgentResponse()
