"""The agent loop: model call by model call, until the model has answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any

from hansard.v1 import event_pb2
from hansard_server.agents.api import (
    ContextOverflow,
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
from hansard_server.agents.attempts import Attempts, Backoff, close
from hansard_server.agents.awaited import run_calls
from hansard_server.agents.begun import Begun
from hansard_server.agents.calls import RecordedCall, ToolRunner
from hansard_server.agents.compaction import Compactor
from hansard_server.agents.instructions import render_templates
from hansard_server.agents.json_text import well_formed
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.resume import close_open_calls, count_steps
from hansard_server.agents.structured import HeldAnswer, output_schema
from hansard_server.agents.summaries import SummaryMaker
from hansard_server.agents.tools.catalog import ToolCatalog, describe_tools
from hansard_server.agents.window import ModelWindow, parameters_of
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
    backoff = Backoff.of(context.agent.model.retry, limits)
    attempts = Attempts(model, recorder, backoff, step_max_s=limits.step_max_s)
    if context.compact is not None:
        summaries = SummaryMaker(attempts, recorder, limits, parameters=parameters_of(context))
        await Compactor(context, recorder, limits, summaries).compact(context.compact)
        return
    runner = ToolRunner(context, tools, limits)
    rendered = await render_templates(context, runner.tools)
    schema = output_schema(context.agent)
    window = ModelWindow(
        context,
        model,
        attempts,
        recorder,
        limits,
        instructions=rendered.instructions,
        tools=describe_tools(runner.tools, rendered.descriptions),
        output_schema=schema,
    )
    events = await window.read()
    closed = await close_open_calls(events, runner, recorder)
    if closed is None:
        return
    if closed:
        events = await window.read()
    answer = HeldAnswer(schema, recorder, max_bytes=limits.text_max_bytes, turn_id=context.turn_id)
    call_model = partial(_call_model, attempts, runner, recorder, limits, window, answer)

    async def ask(step: int) -> Sequence[RecordedCall]:
        return await window.ask(step, call_model, *answer.repair)

    for step in range(count_steps(events), limits.steps_per_turn):
        calls = await attempts.make(partial(ask, step), window.read)
        if not calls and await answer.take():
            return
        await recorder.flush()
        if calls and not await run_calls(calls, runner, recorder):
            return
        await window.read()
    raise AgentProcessingFailed(
        f"The agent has made {limits.steps_per_turn} model calls without coming to an answer."
    )


async def _call_model(  # noqa: C901 - one answer, from its first part to its last
    attempts: Attempts,
    runner: ToolRunner,
    recorder: TurnRecorder,
    limits: AgentLimits,
    window: ModelWindow,
    answer: HeldAnswer,
    request: ModelRequest,
) -> Sequence[RecordedCall]:
    """Record what the model says; return the tool calls that it made, recorded but not run."""
    text = _Text(recorder, limits, answer)
    calls: list[RecordedCall] = []
    parts = attempts.begin(request)
    try:
        while (part := await _next_part(parts, attempts, recorder, limits.settle_s)) is not None:
            match part:
                case TextDelta(kind, delta):
                    if not text.put(kind, delta):
                        await text.show(kind, delta)
                case TextEnd(provider_data):
                    text.end(provider_data)
                case ToolCall():
                    await text.release()
                    limits.check_provider_data(part.provider_data)
                    calls.append(runner.open(part, len(calls)))
                    recorder.add(calls[-1].to_input())
                case Usage():
                    recorder.add_usage(part)
                    window.learn(part)
    except ContextOverflow:
        raise
    except ModelInterrupted:
        # Calls are on record, so they are made; what the model would have said after them it says
        # when it has their outputs.
        if not calls:
            raise
    except ModelFailed as error:
        raise AgentProcessingFailed(str(error)) from error
    finally:
        await close(parts)
    if calls:
        await text.release()
    text.end()
    return calls


async def _next_part(
    parts: AsyncIterator[Part], attempts: Attempts, recorder: TurnRecorder, settle_s: float
) -> Part | None:
    """Return the model's next part; None: there is none. What waits is written if it takes long."""
    begun = Begun(anext(parts, None))
    if begun.done:
        return begun.value
    if not recorder.waiting:
        return await attempts.within_time(begun)
    return await _write_meanwhile(attempts.within_time(begun), recorder, settle_s)


async def _write_meanwhile(
    waiting: Coroutine[Any, Any, Part | None], recorder: TurnRecorder, settle_s: float
) -> Part | None:
    """Return what `waiting` comes to, and when what waits is written, if that was begun.

    The model stays in this task, in which it may have begun something that is bound to it. Raises
    what keeps it from being written, at once.
    """
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout(None)
    writing: asyncio.Task[None] | None = None

    def stop(written: asyncio.Task[None]) -> None:
        if not written.cancelled() and written.exception() is not None and not scope.expired():
            with contextlib.suppress(RuntimeError):  # the model was sooner
                scope.reschedule(loop.time())

    def write() -> None:
        nonlocal writing
        writing = loop.create_task(recorder.flush())
        writing.add_done_callback(stop)

    # A text that waits behind an event is to be seen.
    timer = loop.call_later(0 if recorder.holding else settle_s, write)
    part: Part | None = None
    try:
        async with scope:
            part = await waiting
    except TimeoutError:
        if not scope.expired():
            raise
    except asyncio.CancelledError:
        if writing is not None:
            writing.cancel()
        raise
    finally:
        timer.cancel()
        if writing is not None:
            await asyncio.gather(writing, return_exceptions=True)
    if writing is not None:
        await writing
    return part


class _Text:
    """The open text of a model call."""

    def __init__(self, recorder: TurnRecorder, limits: AgentLimits, answer: HeldAnswer) -> None:
        self._recorder = recorder
        self._limits = limits
        self._answer = answer
        self._kind: TextKind | None = None
        answer.begin()

    def put(self, kind: TextKind, delta: str) -> bool:
        """Add to the open text, ending one of another kind before; False: `show` must."""
        if not delta:
            return True
        if kind is not self._kind:
            self.end()
        if kind is TextKind.OUTPUT and self._answer.holds:
            self._answer.hold(delta)
            return True
        self._kind = kind
        return self._recorder.put(kind, well_formed(delta))

    async def show(self, kind: TextKind, delta: str) -> None:
        """Add to the open text what could not be put."""
        await self._recorder.show(kind, well_formed(delta))

    async def release(self) -> None:
        """End the open text; what was held back is one of its own."""
        self.end()
        held = self._answer.release()
        if held:
            await self._recorder.show(TextKind.OUTPUT, well_formed(held))
            self._recorder.end_text()

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
