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

from hansard.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    event_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    turn_pb2,
)
from tests.benchmarks.clock_server import DELTAS, PAUSE_S, stamp
from tests.benchmarks.fill import event
from tests.benchmarks.messages import CHUNK_BYTES, CLOCK_KEY, FILE_BYTE, FILE_BYTES, PAGE
from tests.support.talk import ANSWER, THOUGHT

DELTAS_EACH = 10
Context = grpc.aio.ServicerContext[Any, Any]
SendResponse = event_service_pb2.SendEventResponse
DownloadResponse = artifact_service_pb2.DownloadArtifactResponse

_ID = "aev_0123456789abcdefghij"
_TURN = "trn_0123456789abcdefghij"


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
        """Write a turn's messages one by one: the input, the deltas, the events, the end."""
        stored = event_pb2.Event(id=_ID, sequence=1, input_message=request.input_message)
        yield SendResponse(turn_id=_TURN, session_uid=_ID, sequence=1, event=stored)
        if request.agent_key == CLOCK_KEY:
            for _ in range(DELTAS):
                await asyncio.sleep(PAUSE_S)
                yield _delta(event_service_pb2.DELTA_KIND_AGENT_OUTPUT, stamp())
        else:
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


class BareFiles(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Counts what is uploaded, and sends what was made at the start."""

    async def UploadArtifacts(  # noqa: N802
        self,
        request_iterator: AsyncIterator[artifact_service_pb2.UploadArtifactsRequest],
        _context: Context,
    ) -> event_pb2.Event:
        """Take a file."""
        size_bytes = 0
        async for request in request_iterator:
            size_bytes += len(request.chunk)
        artifact = artifact_pb2.ArtifactReference(artifact_id="art_1", size_bytes=size_bytes)
        upload = event_pb2.ArtifactUpload(artifacts=[artifact])
        return event_pb2.Event(id=_ID, sequence=1, artifact_upload=upload)

    async def DownloadArtifact(  # noqa: N802
        self, _request: artifact_service_pb2.DownloadArtifactRequest, _context: Context
    ) -> AsyncIterator[DownloadResponse]:
        """Send a file."""
        yield DownloadResponse(artifact=artifact_pb2.Artifact(artifact_id="art_1"))
        for _ in range(FILE_BYTES // CHUNK_BYTES):
            yield DownloadResponse(chunk=_CHUNK)


_CHUNK = FILE_BYTE * CHUNK_BYTES


def _event(event: event_pb2.Event) -> SendResponse:
    return SendResponse(turn_id=_TURN, sequence=event.sequence, event=event)


def _delta(kind: event_service_pb2.DeltaKind.ValueType, text: str) -> SendResponse:
    delta = event_service_pb2.Delta(event_id=_ID, kind=kind, text=text)
    return SendResponse(turn_id=_TURN, sequence=1, delta=delta)


def _split(text: str) -> list[str]:
    cuts = [len(text) * number // DELTAS_EACH for number in range(DELTAS_EACH + 1)]
    return [text[start:end] for start, end in pairwise(cuts)]


def _page() -> bytes:
    """Return a page of events, as large as Hansard's."""
    page = event_service_pb2.ListEventsResponse(next_page_token="t" * 100)
    for sequence in range(1, PAGE + 1):
        record = event(sequence)
        payload = event_pb2.Event.FromString(record.payload)
        payload.id, payload.sequence = record.id, sequence
        payload.agent_key, payload.session_key = "support", "list-0-0"
        payload.created_at.FromMicroseconds(record.created_at_us)
        page.events.append(payload)
    return page.SerializeToString()


class PageHandler(grpc.GenericRpcHandler):
    """ListEvents: one page, which nobody makes anew."""

    def __init__(self) -> None:
        page = _page()

        async def list_events(
            _request: event_service_pb2.ListEventsRequest, _context: Context
        ) -> bytes:
            return page

        self._handler: Any = grpc.unary_unary_rpc_method_handler(
            list_events, request_deserializer=event_service_pb2.ListEventsRequest.FromString
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of ListEvents."""
        if handler_call_details.method == "/hansard.v1.EventService/ListEvents":
            return self._handler
        return None


class Unregistered:
    """A server to which handlers are added by generic ones only, so that the first one counts."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, *_: object) -> None:
        """Leave them."""


async def main() -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((PageHandler(),))
    servicer = BareServicer()  # type: ignore[abstract]  # the others stay unimplemented
    event_service_pb2_grpc.add_EventServiceServicer_to_server(servicer, Unregistered(server))
    files = BareFiles()  # type: ignore[abstract]
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(files, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stderr.write(json.dumps({"event": "serving", "address": f"127.0.0.1:{port}"}) + "\n")
    sys.stderr.flush()
    await stopped.wait()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(main())
