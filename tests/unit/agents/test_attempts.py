"""Attempts: how often a model call is made, from where it goes on, and what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from hansard.v1 import agent_pb2
from hansard_server.agents.api import (
    Json,
    ModelFailed,
    ModelInterrupted,
    ModelRequest,
    Part,
    TextDelta,
    TextEnd,
    TextKind,
    ToolCall,
)
from hansard_server.agents.attempts import Backoff
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.domain.errors import AgentProcessingFailed, ModelUnavailable
from hansard_server.domain.records import Usage
from tests.support.agents import MemoryRecorder, make_agent, message, run_turn

Said = Part | Exception | float


class Unsteady:
    """Says for each call what it is told to; a number is a pause in seconds."""

    context_tokens: int | None = None

    def __init__(self, *calls: list[Said]) -> None:
        self.calls = list(calls)
        self.requests: list[ModelRequest] = []
        self.closed = 0

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        pass

    async def respond(self, request: ModelRequest) -> AsyncIterator[Part]:
        self.requests.append(request)
        try:
            for part in self.calls.pop(0):
                if isinstance(part, Exception):
                    raise part
                if isinstance(part, float):
                    await asyncio.sleep(part)
                else:
                    yield part
        finally:
            self.closed += 1


def text(content: str) -> TextDelta:
    return TextDelta(TextKind.OUTPUT, content)


def thought(content: str) -> TextDelta:
    return TextDelta(TextKind.THINKING, content)


CUT = ModelInterrupted("The line is dead.")


async def turn(
    model: Unsteady,
    recorder: MemoryRecorder | None = None,
    *,
    max_retries: int = 3,
    **limits: float,
) -> MemoryRecorder:
    agent = make_agent("unsteady")
    agent.model.retry.max_retries = max_retries
    agent.model.retry.initial_backoff.nanos = 1_000_000
    if recorder is None:
        recorder = MemoryRecorder()
    recorder.store(message("Hello?"))
    catalog = ModelCatalog({"unsteady": model})
    values: dict[str, float] = {"settle_s": 0.001, **limits}
    return await run_turn(
        agent,
        recorder=recorder,
        models=catalog,
        limits=AgentLimits(**values),
    )


async def test_before_the_first_event_it_is_repeated_whole() -> None:
    model = Unsteady([text("Half"), Usage(3, 1), CUT], [CUT], [text("Whole."), Usage(3, 2)])
    recorder = await turn(model)
    assert recorder.texts("agent_output") == ["Whole."]
    histories = [len(request.history) for request in model.requests]
    assert histories == [1, 1, 1]
    assert model.closed == 3
    # What broke off was paid for too.
    assert recorder.usage == Usage(6, 3)


async def test_after_an_event_it_goes_on_from_there() -> None:
    model = Unsteady(
        [thought("First."), TextEnd(b"signed"), text("Half an ans"), CUT], [text("The answer.")]
    )
    recorder = await turn(model)
    assert recorder.kinds == ["input_message", "thinking", "agent_output"]
    assert recorder.texts("agent_output") == ["The answer."]
    history = model.requests[1].history
    assert [event.WhichOneof("payload") for event in history] == ["input_message", "thinking"]
    assert history[1].thinking.provider_data == b"signed"


async def test_calls_on_record_are_made_though_the_answer_broke_off() -> None:
    model = Unsteady([ToolCall(name="none", arguments_json="{}"), CUT], [text("Well.")])
    recorder = await turn(model)
    assert recorder.kinds == ["input_message", "tool_input", "tool_output", "agent_output"]


async def test_too_many_failures_end_the_turn() -> None:
    model = Unsteady([CUT], [text("Shown"), CUT])
    recorder = MemoryRecorder()
    with pytest.raises(ModelUnavailable, match="The line is dead"):
        await turn(model, recorder, max_retries=1)
    assert len(model.requests) == 2
    # Whoever ends the turn stores what was shown last.
    assert recorder.open_text == (TextKind.OUTPUT, "Shown")


async def test_what_will_not_pass_is_not_repeated() -> None:
    model = Unsteady([ModelFailed("No.")])
    with pytest.raises(AgentProcessingFailed, match="No"):
        await turn(model)


async def test_a_step_that_takes_too_long_ends_the_turn() -> None:
    model = Unsteady([text("Slow"), 60.0])
    recorder = MemoryRecorder()
    with pytest.raises(ModelUnavailable, match=r"longer than 0\.2 s"):
        await turn(model, recorder, step_max_s=0.2)
    assert model.closed == 1
    assert recorder.open_text == (TextKind.OUTPUT, "Slow")


async def test_a_wait_beyond_the_time_of_the_step_is_not_begun() -> None:
    model = Unsteady([ModelInterrupted("Busy.", retry_after_s=900)])
    with pytest.raises(ModelUnavailable, match=r"Busy\. .*beyond"):
        await turn(model, step_max_s=30)


def test_waits_grow_to_the_longest_and_heed_the_provider() -> None:
    backoff = Backoff(initial_s=1, max_s=4, factor=2)
    waits = [backoff.wait_s(retry, None) for retry in range(5)]
    for wait_s, longest_s in zip(waits, (1, 2, 4, 4, 4), strict=True):
        assert longest_s / 1.2 <= wait_s <= longest_s
    assert backoff.wait_s(0, 60) >= 60


def test_a_policy_fills_up_with_the_servers_settings() -> None:
    limits = AgentLimits(model_retries=7)
    assert Backoff.of(agent_pb2.RetryPolicy(), limits) == Backoff(max_retries=7)
    policy = agent_pb2.RetryPolicy(max_retries=0, factor=1, max_backoff={"seconds": 2})
    assert Backoff.of(policy, limits) == Backoff(max_retries=0, factor=1, max_s=2)
