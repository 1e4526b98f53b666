"""One call of RunTurn: what the agent says goes on record, and it is told what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, cast

import grpc
import grpc.aio

from hansard.runtime.v1 import agent_runtime_service_pb2 as runtime_pb2
from hansard.v1 import event_pb2
from hansard_server.agents.api import (
    ModelFailed,
    ModelInterrupted,
    Reach,
    TextKind,
    ToolCall,
    TurnRecorder,
)
from hansard_server.agents.awaited import run_calls
from hansard_server.agents.calls import RecordedCall, ToolRunner
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.remote.drafts import Drafts, ProtocolBroken
from hansard_server.domain.errors import AgentProcessingFailed
from hansard_server.domain.records import Usage

DRAFTS_MAX = 10_000
"""In one call of RunTurn."""
MISSED_HEARTBEATS = 3
_LEAVING_S = 1.0
_TOKENS_MAX = 2**31
_KINDS = {
    runtime_pb2.TEXT_KIND_THINKING: TextKind.THINKING,
    runtime_pb2.TEXT_KIND_AGENT_OUTPUT: TextKind.OUTPUT,
}
_TEXTS = {"thinking": TextKind.THINKING, "agent_output": TextKind.OUTPUT}
# What a call of grpc ends with when the other side is gone, or not there yet.
_PASSING = frozenset({grpc.StatusCode.UNAVAILABLE})
# With INTERNAL, grpc's own words for a call whose connection broke while a message was written: it
# says so before it hears why, and the other side never said it.
_BROKE_IN_A_WRITE = "Internal error from Core"

Call = Any
"""A running call of RunTurn; grpc's own type can't be subscripted."""


class Conversation:
    """A running call, and the turn that it is about."""

    def __init__(
        self,
        call: Call,
        recorder: TurnRecorder,
        runner: ToolRunner,
        drafts: Drafts,
        limits: AgentLimits,
        *,
        deadline: float,
        steps: int,
        heard: int,
    ) -> None:
        """`deadline`: when the agent's time is over, on the monotonic clock; `steps`: how many
        batches of tool calls the turn has had; `heard`: the last sequence that it is told of.
        """
        self._call = call
        # Not by read(): once the status has come it gives nothing of what came before it.
        self._responses = aiter(call)
        self._recorder = recorder
        self._runner = runner
        self._drafts = drafts
        self._limits = limits
        self._deadline = deadline
        self._steps = steps
        self._heard = heard
        self._writing = asyncio.Lock()
        self._reading: asyncio.Task[runtime_pb2.RunTurnResponse | None] | None = None
        self._text: tuple[TextKind, str] | None = None
        self._made = 0
        self._told = 0

    async def run(self, messages: Iterable[runtime_pb2.RunTurnRequest]) -> None:
        """Tell the messages, then do what the agent says until it has ended, or somebody has to be
        asked.

        Raises ModelInterrupted when another call may go on, AgentProcessingFailed when not.
        """
        heartbeat = asyncio.create_task(self._beat(), name="remote-heartbeat")
        try:
            for message in messages:
                await self._tell(message)
            while await self._take(await self._next()):
                pass
        except ProtocolBroken as error:
            raise AgentProcessingFailed(
                f"The agent elsewhere broke the protocol: {error}"
            ) from None
        finally:
            heartbeat.cancel()
            self._call.cancel()
            tasks = [heartbeat, *([self._reading] if self._reading else [])]
            await asyncio.gather(*tasks, return_exceptions=True)

    # What comes ----------------------------------------------------------------------------------

    async def _next(self) -> runtime_pb2.RunTurnResponse:
        """Return the next message. What waits is written when it takes long."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="remote-read")
        if self._recorder.waiting:
            await asyncio.wait((self._reading,), timeout=self._limits.settle_s)
            if not self._reading.done():
                await self._flush()
        done, _ = await asyncio.wait((self._reading,), timeout=self._patience_s())
        if not done:
            self._check_deadline()
            raise ModelInterrupted("The agent elsewhere has gone silent.")
        reading, self._reading = self._reading, None
        try:
            message = reading.result()
        except grpc.aio.AioRpcError as error:
            raise _failure(error.code(), error.details()) from None
        except asyncio.CancelledError:
            # Not this task: the call was ended by the other side.
            raise _failure(await self._call.code(), await self._call.details()) from None
        if message is None:
            raise _failure(await self._call.code(), await self._call.details())
        self._check_deadline()
        return message

    async def _read(self) -> runtime_pb2.RunTurnResponse | None:
        return await anext(self._responses, None)

    def _patience_s(self) -> float:
        silence_s = MISSED_HEARTBEATS * self._limits.heartbeat_s
        return max(0.0, min(silence_s, self._deadline - time.monotonic()))

    def _check_deadline(self) -> None:
        if time.monotonic() >= self._deadline:
            raise AgentProcessingFailed("The agent elsewhere did not answer in its time.")

    async def _take(self, message: runtime_pb2.RunTurnResponse) -> bool:
        """Do what the message says; return whether the agent goes on."""
        self._drafts.check(message)
        match message.WhichOneof("message"):
            case "delta":
                await self._show(message.delta)
            case "text_end":
                self._end_text(message.text_end.provider_data)
            case "event":
                await self._add(message.event)
            case "tool_calls":
                return await self._run_tools(message.tool_calls.calls)
            case "usage":
                self._recorder.add_usage(_usage(message))
            case "end":
                self._recorder.end_text()
                return False
            case "fail":
                raise AgentProcessingFailed(
                    message.fail.message or "The agent elsewhere can't go on."
                )
        return True

    async def _show(self, delta: runtime_pb2.TextDelta) -> None:
        kind = _KINDS[delta.kind]
        if not delta.text:
            return
        shown = "" if self._text is None else self._text[1]
        if self._text is not None and self._text[0] is not kind:
            raise ProtocolBroken("a text of another kind is open")
        if len((shown + delta.text).encode()) > self._limits.text_max_bytes:
            raise ProtocolBroken(f"a text has more than {self._limits.text_max_bytes:,} bytes")
        if self._recorder.waiting:
            await self._flush()
        self._text = (kind, shown + delta.text)
        await self._recorder.show(kind, delta.text)

    def _end_text(self, provider_data: bytes) -> None:
        self._drafts.check_provider_data(provider_data)
        self._count()
        if self._text is None:
            if not provider_data:
                raise ProtocolBroken("no text is open")
            # Reasoning that a provider keeps to itself has no text, and it wants it back.
            thinking = event_pb2.Thinking(provider_data=provider_data)
            self._recorder.add(event_pb2.Event(thinking=thinking))
            return
        self._text = None
        self._recorder.end_text(provider_data)

    async def _add(self, draft: runtime_pb2.Draft) -> None:
        event = await self._drafts.to_event(draft)
        name = event.WhichOneof("payload") or ""
        if self._text is None:
            self._count()
            self._recorder.add(event)
            return
        kind, shown = self._text
        if _TEXTS.get(name) is not kind:
            raise ProtocolBroken(f"a text is open before the {name}")
        text = getattr(event, name)
        if text.content != shown:
            raise ProtocolBroken(f"the {name} is not what was shown of it")
        self._end_text(text.provider_data)

    async def _run_tools(self, asked: Sequence[runtime_pb2.ToolCall]) -> bool:
        if self._text is not None:
            raise ProtocolBroken("a text is open before the tool calls")
        if self._steps == self._limits.steps_per_turn:
            raise AgentProcessingFailed(
                f"The agent has called tools {self._steps} times without coming to an answer."
            )
        self._steps += 1
        calls = self._open_calls(asked)
        await self._flush()
        tap = _OutputTap(self._recorder)
        if not await run_calls(calls, self._runner, cast("TurnRecorder", tap)):
            await self._suspend()
            return False
        outputs = [tap.outputs[call.tool_call_id] for call in calls]
        await self._tell(await self._results(outputs))
        return True

    def _open_calls(self, asked: Sequence[runtime_pb2.ToolCall]) -> list[RecordedCall]:
        calls: list[RecordedCall] = []
        for call in asked:
            self._drafts.check_provider_data(call.provider_data)
            wanted = ToolCall(call.name, call.arguments_json, call.provider_data)
            try:
                calls.append(self._runner.open(wanted, len(calls)))
            except ModelFailed as error:
                raise ProtocolBroken(str(error)) from None
            self._count()
            self._recorder.add(calls[-1].to_input())
        return calls

    async def _results(self, outputs: Sequence[event_pb2.ToolOutput]) -> runtime_pb2.RunTurnRequest:
        """Return the outputs, and what was said meanwhile that the agent has not heard of."""
        reach = Reach(max_bytes=self._limits.history_max_bytes, turn_only=True)
        events = (await self._recorder.history(reach)).events
        news = [event for event in events if event.sequence > self._heard]
        self._heard = events[-1].sequence
        results = runtime_pb2.ToolResults(
            outputs=outputs,
            inputs=[event for event in news if event.HasField("input_message")],
        )
        return runtime_pb2.RunTurnRequest(tool_results=results)

    def _count(self) -> None:
        self._made += 1
        if self._made > DRAFTS_MAX:
            raise ProtocolBroken(f"one call brings more than {DRAFTS_MAX:,} drafts")

    # What goes -----------------------------------------------------------------------------------

    async def _flush(self) -> None:
        await self._recorder.flush()
        if self._told < self._made:
            self._told = self._made
            stored = runtime_pb2.Stored(drafts=self._made)
            await self._tell(runtime_pb2.RunTurnRequest(stored=stored))

    async def _suspend(self) -> None:
        """Say that somebody has to be asked; the agent gets a moment to end the call itself."""
        with suppress(ModelInterrupted, TimeoutError):
            await self._tell(runtime_pb2.RunTurnRequest(suspend=runtime_pb2.Suspend()))
            async with asyncio.timeout(_LEAVING_S):
                await self._call.code()

    async def _tell(self, message: runtime_pb2.RunTurnRequest) -> None:
        """Send a message. Raises ModelInterrupted when the agent does not take it."""
        try:
            async with self._writing, asyncio.timeout(MISSED_HEARTBEATS * self._limits.heartbeat_s):
                await self._call.write(message)
        except TimeoutError:
            raise ModelInterrupted("The agent elsewhere takes no messages.") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The call is over. What the agent said before that is still to be read, and then why.
            return

    async def _beat(self) -> None:
        heartbeat = runtime_pb2.RunTurnRequest(heartbeat=runtime_pb2.Heartbeat())
        while True:
            await asyncio.sleep(self._limits.heartbeat_s)
            # Whoever reads finds out by itself.
            with suppress(ModelInterrupted):
                await self._tell(heartbeat)


class _OutputTap:
    """The turn's recorder for a batch of calls: it keeps what they came to, however much it is."""

    def __init__(self, recorder: TurnRecorder) -> None:
        self.outputs: dict[str, event_pb2.ToolOutput] = {}
        self._recorder = recorder

    def add(self, payload: event_pb2.Event, *rest: Any, **named: Any) -> None:
        if payload.HasField("tool_output"):
            self.outputs[payload.tool_output.tool_call_id] = payload.tool_output
        self._recorder.add(payload, *rest, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)


def _failure(
    code: grpc.StatusCode, details: str | None
) -> ModelInterrupted | AgentProcessingFailed:
    broke = code is grpc.StatusCode.INTERNAL and details == _BROKE_IN_A_WRITE
    if code in _PASSING or broke:
        return ModelInterrupted("The agent elsewhere can't be reached, or its connection broke.")
    if code is grpc.StatusCode.OK:
        return AgentProcessingFailed("The agent elsewhere ended the call before the turn.")
    # Its words may be anybody's.
    return AgentProcessingFailed(f"The agent elsewhere ended the call with {code.name}.")


def _usage(message: runtime_pb2.RunTurnResponse) -> Usage:
    usage = message.usage
    tokens = (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens)
    if not all(0 <= count <= _TOKENS_MAX for count in tokens):
        raise ProtocolBroken("a usage has a number of tokens that can't be")
    return Usage(*tokens)
