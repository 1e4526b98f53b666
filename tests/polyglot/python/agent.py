"""An agent that runs elsewhere: Hansard calls it for every turn of its agents.

    python agent.py 127.0.0.1:50070

It thinks, writes two notes side by side, has a report signed and the user asked, and answers. Asked
"what did you say", it quotes its last answer. All that it knows stands in the history, so it can be
killed at any moment: the next call goes on from what is on record.

Environment: AGENT_TOKEN, which callers must bring; AGENT_PAUSE_MS, how long it takes for each step.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio

from hansard.runtime.v1 import agent_runtime_service_pb2 as runtime
from hansard.runtime.v1 import agent_runtime_service_pb2_grpc as runtime_grpc
from hansard.v1 import event_pb2

PAUSE_S = int(os.environ.get("AGENT_PAUSE_MS", "0")) / 1000
TOKEN = os.environ.get("AGENT_TOKEN", "")


class Agent(runtime_grpc.AgentRuntimeServiceServicer):
    """Answers turns."""

    async def RunTurn(  # type: ignore[override]  # noqa: N802 - the contract's name
        self,
        request_iterator: AsyncIterator[runtime.RunTurnRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Answer one turn, or go on with one."""
        metadata = dict(context.invocation_metadata() or ())
        if TOKEN and metadata.get("authorization") != f"Bearer {TOKEN}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        turn = Turn(request_iterator, context)
        interval_s = await turn.listen()
        beating = asyncio.create_task(turn.beat(interval_s))
        try:
            await turn.answer()
        finally:
            beating.cancel()


class Suspended(Exception):  # noqa: N818 - reads as what happened
    """Somebody has to be asked. This call is over; another one comes when there is an answer."""


class Turn:
    """One call of RunTurn."""

    def __init__(
        self,
        requests: AsyncIterator[runtime.RunTurnRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        self._requests = requests
        self._context = context
        self._writing = asyncio.Lock()
        self._history: list[event_pb2.Event] = []

    async def listen(self) -> float:
        """Read what Hansard tells, and return how often it wants to hear from this side."""
        interval_s = 10.0
        async for request in self._requests:
            match request.WhichOneof("message"):
                case "start":
                    interval_s = request.start.heartbeat_interval.ToTimedelta().total_seconds()
                case "history":
                    self._history += request.history.events
                case "begin":
                    break
        return interval_s

    async def beat(self, interval_s: float) -> None:
        """Say at times that the agent is still there."""
        while True:
            await asyncio.sleep(interval_s / 2)
            await self._say(heartbeat={})

    async def answer(self) -> None:
        """Do what is still to be done, and answer."""
        question, done = self._turn()
        if "what did you say" in question.lower():
            before = [e.agent_output.content for e in self._history if e.HasField("agent_output")]
            await self._write("agent_output", f"I said: {before[-1] if before else 'nothing'}")
            await self._say(end={})
            return
        if not any(event.HasField("thinking") for event in done):
            await self._write("thinking", "First two notes, then a signature and a question.")
        try:
            outputs = in_order_of_calls(done)
            if len(outputs) < 2:
                note = {"content": question}
                outputs = await self._call(
                    ("write", {"filename": "one.txt", **note}),
                    ("write", {"filename": "two.txt", **note}),
                )
            if len(outputs) < 4:
                outputs += await self._call(
                    ("sign", {"filename": "report.txt", "content": "All is well."}),
                    ("confirm", {"question": "Shall I go on?"}),
                )
        except Suspended:
            return
        await self._write("agent_output", report(outputs))
        await self._say(usage={"input_tokens": len(self._history), "output_tokens": 1})
        await self._say(end={})

    def _turn(self) -> tuple[str, Sequence[event_pb2.Event]]:
        """Return the question, and what this turn has done already."""
        for place in range(len(self._history) - 1, -1, -1):
            event = self._history[place]
            if event.HasField("input_message"):
                texts = [part.text.content for part in event.input_message.messages]
                return " ".join(texts), self._history[place + 1 :]
        return "", ()

    async def _write(self, kind: str, content: str) -> None:
        """Write a text, word by word."""
        kinds = {
            "thinking": runtime.TEXT_KIND_THINKING,
            "agent_output": runtime.TEXT_KIND_AGENT_OUTPUT,
        }
        words = content.split(" ")
        for number, word in enumerate(words):
            await asyncio.sleep(PAUSE_S / len(words))
            await self._say(delta={"kind": kinds[kind], "text": word if not number else f" {word}"})
        await self._say(event={kind: {"content": content}})

    async def _call(self, *calls: tuple[str, dict[str, str]]) -> list[event_pb2.ToolOutput]:
        """Have Hansard run its tools, side by side, and return what they answered."""
        await asyncio.sleep(PAUSE_S)
        await self._say(
            tool_calls={
                "calls": [
                    {"name": name, "arguments_json": json.dumps(arguments)}
                    for name, arguments in calls
                ]
            }
        )
        async for request in self._requests:
            match request.WhichOneof("message"):
                case "tool_results":
                    await asyncio.sleep(PAUSE_S)
                    return list(request.tool_results.outputs)
                case "suspend":
                    raise Suspended
        raise Suspended

    async def _say(self, **message: Any) -> None:
        async with self._writing:
            await self._context.write(runtime.RunTurnResponse(**message))


def in_order_of_calls(events: Sequence[event_pb2.Event]) -> list[event_pb2.ToolOutput]:
    """Return what the calls came to. Outputs stand in the history in the order of their arrival."""
    calls = [e.tool_input.tool_call_id for e in events if e.HasField("tool_input")]
    found = {e.tool_output.tool_call_id: e.tool_output for e in events if e.HasField("tool_output")}
    return [found[call] for call in calls if call in found]


def report(outputs: Sequence[event_pb2.ToolOutput]) -> str:
    """Return the answer."""
    one, two, signed, confirmed = outputs[:4]
    notes = [json.loads(output.tool_output_json).get("filename", "?") for output in (one, two)]
    outcome = event_pb2.ToolOutcome.Name(signed.outcome).removeprefix("TOOL_OUTCOME_").lower()
    said = json.loads(confirmed.tool_output_json)
    return f"Notes: {', '.join(notes)}. The report is {outcome}. You said: {json.dumps(said)}."


async def main(address: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    runtime_grpc.add_AgentRuntimeServiceServicer_to_server(Agent(), server)
    port = server.add_insecure_port(address)
    await server.start()
    print(f"serving on port {port}", flush=True)  # noqa: T201
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
