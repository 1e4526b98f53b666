"""TurnService on the wire."""

from __future__ import annotations

from typing import Any

import grpc.aio

from hansard.v1 import turn_pb2, turn_service_pb2, turn_service_pb2_grpc
from hansard_server.servicers.caller import current_tenant
from hansard_server.servicers.convert import to_turn
from hansard_server.turns.inputs import Inputs
from hansard_server.turns.queries import Queries

Context = grpc.aio.ServicerContext[Any, Any]


class TurnServicer(turn_service_pb2_grpc.TurnServiceServicer):
    """Converts, calls, converts."""

    def __init__(self, inputs: Inputs, queries: Queries) -> None:
        """Serve by `inputs` and `queries`."""
        self._inputs = inputs
        self._queries = queries

    async def GetTurn(
        self, request: turn_service_pb2.GetTurnRequest, _context: Context
    ) -> turn_pb2.Turn:
        """See the contract."""
        turn = await self._queries.get_turn(current_tenant(), request)
        return to_turn(turn, request.agent_key, request.session_key)

    async def ListTurns(
        self, request: turn_service_pb2.ListTurnsRequest, _context: Context
    ) -> turn_service_pb2.ListTurnsResponse:
        """See the contract."""
        page = await self._queries.list_turns(current_tenant(), request)
        return turn_service_pb2.ListTurnsResponse(
            turns=[to_turn(turn, request.agent_key, request.session_key) for turn in page.items],
            next_page_token=page.next_token,
        )

    async def CancelTurn(
        self, request: turn_service_pb2.CancelTurnRequest, _context: Context
    ) -> turn_pb2.Turn:
        """See the contract."""
        turn = await self._inputs.cancel(current_tenant(), request)
        return to_turn(turn, request.agent_key, request.session_key)
