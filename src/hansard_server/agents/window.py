"""The window: what of a session's record the agent's model gets, call by call of one turn."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from hansard.v1 import event_pb2
from hansard_server.agents.api import (
    ContextOverflow,
    Json,
    Model,
    ModelRequest,
    OutputSchema,
    Reach,
    ShortSighted,
    ToolDescription,
    TurnContext,
    TurnRecorder,
)
from hansard_server.agents.attempts import Attempts
from hansard_server.agents.compaction import Compactor
from hansard_server.agents.history import History, model_history
from hansard_server.agents.json_text import struct_to_json
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.summaries import SummaryMaker
from hansard_server.agents.tokens import (
    LEAST_PER_BYTE,
    answer_room,
    estimate_event,
    estimate_setting,
)
from hansard_server.domain.errors import AgentProcessingFailed
from hansard_server.domain.records import Usage

T = TypeVar("T")

_READ_MAX_TIMES = 4
"""A model of which it is known how much it takes may get so many times `history_max_bytes`."""
_SCALE_LEAST, _SCALE_MOST = 0.5, 4.0
_SHRINKS = 4
_SHRINK = 0.7
_THRESHOLD_PERCENT = 80


class ModelWindow:
    """Makes the requests of one turn, so that they fit into what the model takes."""

    def __init__(
        self,
        context: TurnContext,
        model: Model,
        attempts: Attempts,
        recorder: TurnRecorder,
        limits: AgentLimits,
        *,
        instructions: tuple[str, ...],
        tools: tuple[ToolDescription, ...],
        output_schema: OutputSchema | None = None,
    ) -> None:
        """Make a window for the turn with this context; the rest is the same in all its calls.

        `attempts` are the calls of `model`.
        """
        self._context = context
        # Asking whether it has the Protocol takes longer than asking for the method.
        self._short_sighted: Callable[[Mapping[str, Json]], bool] | None = getattr(
            model, ShortSighted.needs_history.__name__, None
        )
        self._attempts = attempts
        self._recorder = recorder
        self._limits = limits
        self._parameters = parameters_of(context)
        self._instructions = instructions
        self._tools = tools
        self._schema = output_schema
        self._context_tokens = model.context_tokens
        self._setting_tokens = estimate_setting(instructions, tools, output_schema)
        self._counts: dict[int, int] = {}
        self._scale = 1.0
        """What the model counts where the estimate says 1, as far as it has told."""
        self._believed_room: int | None = None
        self._asked_tokens = 0
        self._overflow_told = False
        self._compaction_tried = False
        self._events: Sequence[event_pb2.Event] = ()
        self._whole = True

    async def read(self) -> Sequence[event_pb2.Event]:
        """Return the newest events of the record, which the next request is made of."""
        recent = await self._recorder.history(self._reach())
        if not self._events:
            # Another process may have told of it before this one took the turn over.
            self._overflow_told = any(
                event.HasField("context_limit_exceeded") and event.turn_id == self._context.turn_id
                for event in recent.events
            )
        self._events, self._whole = recent.events, recent.whole
        return self._events

    async def ask(
        self,
        step: int,
        call: Callable[[ModelRequest], Awaitable[T]],
        *more: event_pb2.Event,
    ) -> T:
        """Return what `call` returns for the request of the events that were read, and `more`.

        When it says by ContextOverflow that they are too many, it is called with fewer. Raises
        AgentProcessingFailed when no fewer are possible.
        """
        for _ in range(_SHRINKS):
            history = await self._fitting(more)
            request = self._request(step, (*history.events, *more))
            self._asked_tokens = self._around(more) + history.tokens
            try:
                return await call(request)
            except ContextOverflow as overflow:
                await self._shrink(overflow)
                if not history.left_out and len(history.events) <= 1:
                    break
        raise AgentProcessingFailed("the conversation is too long for the model")

    def learn(self, usage: Usage) -> None:
        """Take in what the model has counted for the last request."""
        if usage.input_tokens and self._asked_tokens:
            counted = usage.input_tokens / self._asked_tokens
            self._scale = min(max(counted, _SCALE_LEAST), _SCALE_MOST)

    def _request(self, step: int, history: tuple[event_pb2.Event, ...]) -> ModelRequest:
        return ModelRequest(
            step=step,
            instructions=self._instructions,
            history=history,
            tools=self._tools,
            parameters=self._parameters,
            output_schema=self._schema,
            files=self._context.files,
        )

    def _reach(self) -> Reach:
        if self._short_sighted is not None and not self._short_sighted(self._parameters):
            # Nothing that a summary could shorten is given to it either.
            return Reach(max_bytes=self._limits.history_max_bytes, turn_only=True)
        if self._context_tokens is None:
            return Reach(max_bytes=self._limits.history_max_bytes)
        most = _READ_MAX_TIMES * self._limits.history_max_bytes
        return Reach(max_bytes=min(math.ceil(self._context_tokens / LEAST_PER_BYTE), most))

    async def _fitting(self, more: Sequence[event_pb2.Event]) -> History:
        """Return what fits of the events; the record is told when that is not all of them."""
        history = self._select(more)
        threshold = self._threshold()
        too_long = history.left_out or (not self._whole and self._context_tokens is not None)
        if too_long:
            self._tell_overflow(history)
        if (
            not self._compaction_tried
            and threshold is not None
            and (too_long or history.all_tokens * self._scale > threshold)
        ):
            self._compaction_tried = True
            done = await self._compactor().compact_older(
                self._events, whole=self._whole, least_tokens=threshold / self._scale
            )
            if done:
                await self.read()
                return self._select(more)
        if self._recorder.waiting:
            await self._recorder.flush()
        return history

    def _select(self, more: Sequence[event_pb2.Event]) -> History:
        room = self._room()
        left = None if room is None else room / self._scale - self._around(more)
        return model_history(self._events, max_tokens=left, count=self._count)

    def _around(self, more: Sequence[event_pb2.Event]) -> int:
        return self._setting_tokens + sum(map(estimate_event, more))

    def _room(self) -> int | None:
        """Return how many tokens a request may have; None: any number."""
        room: int | None = self._believed_room
        if self._context_tokens is not None:
            own = self._context_tokens - answer_room(self._context_tokens, self._parameters)
            room = own if room is None else min(own, room)
        return room

    def _threshold(self) -> float | None:
        """Return from how many tokens on a conversation is summarised; None: never."""
        agent = self._context.agent
        if not agent.HasField("compaction") or (
            agent.compaction.HasField("enabled") and not agent.compaction.enabled
        ):
            return None
        settings = agent.compaction
        thresholds: list[int | float] = []
        room = self._room()
        if room is not None:
            percent = _THRESHOLD_PERCENT
            if settings.HasField("threshold_percent"):
                percent = settings.threshold_percent
            thresholds.append(room * percent / 100)
        if settings.HasField("threshold_tokens"):
            thresholds.append(settings.threshold_tokens)
        return min(thresholds, default=None)

    def _count(self, event: event_pb2.Event) -> int:
        known = self._counts.get(event.sequence)
        if known is None:
            known = self._counts[event.sequence] = estimate_event(event)
        return known

    def _compactor(self) -> Compactor:
        summaries = SummaryMaker(
            self._attempts,
            self._recorder,
            self._limits,
            parameters=self._parameters,
            room_tokens=self._room(),
        )
        return Compactor(self._context, self._recorder, self._limits, summaries)

    async def _shrink(self, overflow: ContextOverflow) -> None:
        """Believe the provider, and not the estimate."""
        self._tell_overflow(None, overflow)
        if overflow.context_limit > 0:
            self._context_tokens = overflow.context_limit
        if overflow.actual_tokens > self._asked_tokens > 0:
            self._scale = max(self._scale, overflow.actual_tokens / self._asked_tokens)
        room = self._room()
        if room is None or self._asked_tokens * self._scale <= room:
            # Nobody says how much it takes: less than this.
            self._believed_room = max(int(self._asked_tokens * self._scale * _SHRINK), 1)
        self._recorder.drop_text()
        await self.read()

    def _tell_overflow(
        self, history: History | None, overflow: ContextOverflow | None = None
    ) -> None:
        """Record, once in a turn, that the conversation is too long for the model."""
        if self._overflow_told:
            return
        self._overflow_told = True
        limit = self._context_tokens or 0
        actual = 0
        if overflow is not None:
            limit, actual = overflow.context_limit or limit, overflow.actual_tokens
        elif history is not None:
            room = limit - (self._room() or 0)
            actual = math.ceil((self._setting_tokens + history.all_tokens) * self._scale) + room
        self._recorder.add(
            event_pb2.Event(
                context_limit_exceeded=event_pb2.ContextLimitExceeded(
                    context_limit=limit,
                    actual_tokens=actual,
                    message=_words(limit, actual),
                )
            )
        )


def parameters_of(context: TurnContext) -> Mapping[str, Json]:
    """Return the parameters that the agent gives its model."""
    if context.parameters is not None:
        return context.parameters
    return struct_to_json(context.agent.model.parameters)


def _words(limit: int, actual: int) -> str:
    said = "The conversation is too long for the model"
    if limit and actual:
        said = f"The model takes {limit:,} tokens, and the conversation would have {actual:,}"
    elif limit:
        said = f"The model takes {limit:,} tokens, and the conversation would have more"
    return f"{said}: what is oldest is summarised or left out."
