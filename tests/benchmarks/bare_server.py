"""The server to compare with: the same messages on the same loop, no store, no checks."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import grpc.aio
import uvloop

from hansard.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc, turn_pb2
from tests.support.talk import ANSWER, THOUGHT

DELTAS_EACH = 10
Context = grpc.aio.ServicerContext[Any, Any]
SendResponse = event_service_pb2.SendEventResponse


class BareServicer(event_service_pb2_grpc.EventServiceServicer):
    """Answers at once."""

    async def AppendEvents(  # noqa: N802 - the contract's name
        self, request: event_service_pb2.AppendEventsRequest, _context: Context
    ) -> event_service_pb2.AppendEventsResponse:
        """Answer as if the events had been stored."""
        return event_service_pb2.AppendEventsResponse(
            session_uid="0123456789abcdefghij",
            events=[
                event_service_pb2.AppendedEvent(event_id=_ID, sequence=number)
                for number, _ in enumerate(request.events, 1)
            ],
        )

    async def SendEvent(  # noqa: N802
        self, request: event_service_pb2.SendEventRequest, _context: Context
    ) -> AsyncIterator[SendResponse]:
        """Write a turn's messages one by one: the input, 20 deltas, 2 events, the end."""
        stored = event_pb2.Event(id=_ID, sequence=1, input_message=request.input_message)
        yield SendResponse(turn_id=_TURN, session_uid=_ID, sequence=1, event=stored)
        for text in _split(THOUGHT):
            yield _delta(event_service_pb2.DELTA_KIND_THINKING, text)
        thinking = event_pb2.Thinking(content=THOUGHT)
        yield _event(event_pb2.Event(id=_ID, sequence=2, thinking=thinking))
        for text in _split(ANSWER):
            yield _delta(event_service_pb2.DELTA_KIND_AGENT_OUTPUT, text)
        answer = event_pb2.AgentOutput(content=ANSWER)
        yield _event(event_pb2.Event(id=_ID, sequence=3, agent_output=answer))
        turn = turn_pb2.Turn(id=_TURN, status=turn_pb2.TURN_STATUS_COMPLETED)
        yield SendResponse(turn_id=_TURN, sequence=3, turn_end=event_service_pb2.TurnEnd(turn=turn))


_ID = "aev_0123456789abcdefghij"
_TURN = "trn_0123456789abcdefghij"


def _event(event: event_pb2.Event) -> SendResponse:
    return SendResponse(turn_id=_TURN, sequence=event.sequence, event=event)


def _delta(kind: event_service_pb2.DeltaKind.ValueType, text: str) -> SendResponse:
    delta = event_service_pb2.Delta(event_id=_ID, kind=kind, text=text)
    return SendResponse(turn_id=_TURN, sequence=1, delta=delta)


def _split(text: str) -> list[str]:
    cuts = [len(text) * number // DELTAS_EACH for number in range(DELTAS_EACH + 1)]
    return [text[start:end] for start, end in pairwise(cuts)]


async def main() -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = grpc.aio.server()
    servicer = BareServicer()  # type: ignore[abstract]  # the others stay unimplemented
    event_service_pb2_grpc.add_EventServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stderr.write(json.dumps({"event": "serving", "address": f"127.0.0.1:{port}"}) + "\n")
    sys.stderr.flush()
    await stopped.wait()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(main())
