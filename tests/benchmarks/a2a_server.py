"""Run by the Python of a venv that has a2a-sdk: its gRPC server with its database store, on uvloop.

Argument: a database URL. A turn is 23 messages, as from Hansard's scripted agent: the task, that it
works, 20 pieces of an answer, its end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys

import grpc.aio
import uvloop
from a2a.helpers.proto_helpers import new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler, GrpcHandler
from a2a.server.tasks import DatabaseTaskStore, TaskUpdater
from a2a.types import a2a_pb2, a2a_pb2_grpc
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

PIECES = 20
PIECE = "Here is the answer, "


class Talker(AgentExecutor):
    """Answers at once, piece by piece."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer a message."""
        task = context.current_task
        if task is None:
            task = new_task_from_user_message(context.message)
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        for number in range(PIECES):
            await updater.add_artifact(
                [new_text_part(PIECE)],
                artifact_id="answer",
                append=number > 0,
                last_chunk=number == PIECES - 1,
            )
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Nothing runs for so long."""


async def main(url: str) -> None:
    """Serve until SIGTERM."""
    logging.disable()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    engine = create_async_engine(url)
    if url.startswith("sqlite"):
        event.listen(engine.sync_engine, "connect", _use_wal)
    store = DatabaseTaskStore(engine)
    await store.initialize()
    card = a2a_pb2.AgentCard(
        name="Talker", capabilities=a2a_pb2.AgentCapabilities(streaming=True), version="1"
    )
    server = grpc.aio.server()
    handler = GrpcHandler(DefaultRequestHandler(Talker(), store, card))
    a2a_pb2_grpc.add_A2AServiceServicer_to_server(handler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    message = a2a_pb2.Message(
        message_id="m", role=a2a_pb2.ROLE_USER, parts=[new_text_part("Where is my parcel?")]
    )
    request = a2a_pb2.SendMessageRequest(message=message).SerializeToString()
    entry = {"event": "serving", "address": f"127.0.0.1:{port}", "request": request.hex()}
    sys.stderr.write(json.dumps(entry) + "\n")
    sys.stderr.flush()
    await stopped.wait()
    await server.stop(0)
    await engine.dispose()


def _use_wal(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
