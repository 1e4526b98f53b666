"""The agent loop: model call by model call, until the model has answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

from hansard.v1 import event_pb2
from hansard_server.agents.api import (
    Model,
    ModelFailed,
    ModelInterrupted,
    ModelRequest,
    Part,
    TextDelta,
    TextEnd,
    TextKind,
    ToolCall,
    TurnContext,
    TurnRecorder,
)
from hansard_server.agents.attempts import Attempts, Backoff
from hansard_server.agents.awaited import run_calls
from hansard_server.agents.calls import RecordedCall, ToolRunner
from hansard_server.agents.history import model_history
from hansard_server.agents.instructions import render_templates
from hansard_server.agents.json_text import struct_to_json, well_formed
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.resume import close_open_calls, count_steps
from hansard_server.agents.tools.catalog import ToolCatalog, describe_tools
from hansard_server.domain.errors import AgentProcessingFailed
from hansard_server.domain.records import Usage

_DEFAULT_LIMITS = AgentLimits()


async def run_agent(
    context: TurnContext,
    recorder: TurnRecorder,
    *,
    models: ModelCatalog,
    tools: ToolCatalog,
    limits: AgentLimits = _DEFAULT_LIMITS,
) -> None:
    """Answer the turn's input: model calls and their tool calls, until one makes no tool call, or
    somebody has to be asked about one: then the recorder knows.

    A turn that was taken over goes on from its last stored event. What the last model call has
    said waits in the recorder when this returns; when it raises or is cancelled, a text may be
    open. Raises ModelUnavailable when the server doesn't know the model, AgentProcessingFailed
    when the model can't go on or makes more calls than `limits.steps_per_turn`.
    """
    model = models.get(context.agent.model.name)
    runner = ToolRunner(context, tools, limits)
    rendered = await render_templates(context, runner.tools)
    descriptions = describe_tools(runner.tools, rendered.descriptions)
    events = await recorder.history()
    closed = await close_open_calls(events, runner, recorder)
    if closed is None:
        return
    if closed:
        events = await recorder.history()

    async def ask(step: int) -> Sequence[RecordedCall]:
        request = ModelRequest(
            step=step,
            instructions=rendered.instructions,
            history=model_history(events, max_bytes=limits.history_max_bytes),
            tools=descriptions,
            parameters=struct_to_json(context.agent.model.parameters),
            files=context.files,
        )
        return await _call_model(attempts, request, runner, recorder, limits)

    async def refresh() -> None:
        nonlocal events
        events = await recorder.history()

    backoff = Backoff.of(context.agent.model.retry, limits)
    attempts = Attempts(model, recorder, backoff, step_max_s=limits.step_max_s)
    for step in range(count_steps(events), limits.steps_per_turn):
        calls = await attempts.make(partial(ask, step), refresh)
        if not calls:
            return
        await recorder.flush()
        if not await run_calls(calls, runner, recorder):
            return
        await refresh()
    raise AgentProcessingFailed(
        f"The agent has made {limits.steps_per_turn} model calls without coming to an answer."
    )


async def _call_model(
    model: Model,
    request: ModelRequest,
    runner: ToolRunner,
    recorder: TurnRecorder,
    limits: AgentLimits,
) -> Sequence[RecordedCall]:
    """Record what the model says; return the tool calls that it made, recorded but not run."""
    text = _Text(recorder, limits)
    calls: list[RecordedCall] = []
    parts = model.respond(request)
    try:
        while (part := await _next_part(parts, recorder, limits.settle_s)) is not None:
            match part:
                case TextDelta(kind, delta):
                    await text.show(kind, delta)
                case TextEnd(provider_data):
                    text.end(provider_data)
                case ToolCall():
                    text.end()
                    limits.check_provider_data(part.provider_data)
                    calls.append(runner.open(part, len(calls)))
                    recorder.add(calls[-1].to_input())
                case Usage():
                    recorder.add_usage(part)
    except ModelInterrupted:
        # Calls are on record, so they are made; what the model would have said after them it says
        # when it has their outputs.
        if not calls:
            raise
    except ModelFailed as error:
        raise AgentProcessingFailed(str(error)) from error
    finally:
        await _close(parts)
    text.end()
    return calls


async def _next_part(
    parts: AsyncIterator[Part], recorder: TurnRecorder, settle_s: float
) -> Part | None:
    """Return the model's next part; None: there is none. What waits is written if it takes long."""
    if not recorder.waiting:
        return await anext(parts, None)
    task = asyncio.create_task(_next(parts))
    try:
        done, _ = await asyncio.wait((task,), timeout=settle_s)
        if not done:
            await recorder.flush()
        return await task
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise


async def _next(parts: AsyncIterator[Part]) -> Part | None:
    return await anext(parts, None)


async def _close(parts: AsyncIterator[Part]) -> None:
    # An answer that is left in the middle gives back its connection now, not when collected.
    close = getattr(parts, "aclose", None)
    if close is not None:
        await close()


class _Text:
    """The open text of a model call."""

    def __init__(self, recorder: TurnRecorder, limits: AgentLimits) -> None:
        self._recorder = recorder
        self._limits = limits
        self._kind: TextKind | None = None

    async def show(self, kind: TextKind, delta: str) -> None:
        """Add to the open text, ending one of another kind before."""
        if not delta:
            return
        if kind is not self._kind:
            self.end()
        self._kind = kind
        await self._recorder.show(kind, well_formed(delta))

    def end(self, provider_data: bytes = b"") -> None:
        """Make the open text an event that waits, if there is one."""
        self._limits.check_provider_data(provider_data)
        if provider_data and self._kind is None:
            # Reasoning that a provider keeps to itself has no text, and it wants it back.
            self._recorder.add(
                event_pb2.Event(thinking=event_pb2.Thinking(provider_data=provider_data))
            )
        self._recorder.end_text(provider_data)
        self._kind = None
