"""What a model gets when a conversation is longer than it takes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from itertools import pairwise

import pytest

from hansard.v1 import agent_pb2, event_pb2, turn_pb2
from hansard_server.agents.api import (
    ContextOverflow,
    Json,
    ModelFailed,
    ModelRequest,
    Part,
    TextDelta,
    TextKind,
)
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.tokens import estimate_event, estimate_setting, estimate_text
from hansard_server.domain.errors import AgentProcessingFailed
from hansard_server.domain.records import Usage
from tests.support.agents import MemoryRecorder, make_agent, message, run_turn


class Counts:
    """Takes so many tokens by its own count, says what it counted, and answers."""

    def __init__(
        self,
        context_tokens: int | None,
        *,
        takes: int | None = None,
        count: Callable[[str], int] = estimate_text,
        says_numbers: bool = True,
    ) -> None:
        self.context_tokens = context_tokens
        self.requests: list[ModelRequest] = []
        self.refused: list[int] = []
        self.summary: str | None = "They spoke of bees."
        self._takes = takes
        self._count = count
        self._says_numbers = says_numbers

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        pass

    async def respond(self, request: ModelRequest) -> AsyncIterator[Part]:
        counted = sum(self._count(str(event)) for event in request.history)
        if self._takes is not None and counted > self._takes:
            self.refused.append(counted)
            numbers = (self._takes, counted) if self._says_numbers else (0, 0)
            raise ContextOverflow("too long", context_limit=numbers[0], actual_tokens=numbers[1])
        self.requests.append(request)
        if request.summary_of and self.summary is None:
            raise ModelFailed("no summary")
        text = self.summary if request.summary_of else "An answer."
        yield TextDelta(TextKind.OUTPUT, text or "")
        yield Usage(input_tokens=counted)

    @property
    def given(self) -> list[int]:
        """What the last answer was made of, by sequence."""
        return [event.sequence for event in self.requests[-1].history]


def recorder_of(turns: int, words: int = 100) -> MemoryRecorder:
    """Return the record of so many turns before the one that is about to run."""
    recorder = MemoryRecorder()
    for number in range(turns):
        recorder.store(message(f"Question {number} " + "bee " * words), f"trn_{number}")
        answer = event_pb2.AgentOutput(content=f"Answer {number} " + "wax " * words)
        recorder.store(event_pb2.Event(agent_output=answer), f"trn_{number}")
    recorder.store(message("And now?"))
    return recorder


async def turn(
    model: Counts,
    recorder: MemoryRecorder,
    compaction: agent_pb2.CompactionSettings | None = None,
    compact: turn_pb2.Compact | None = None,
) -> None:
    agent = make_agent("counts")
    if compaction is not None:
        agent.compaction.CopyFrom(compaction)
    models = ModelCatalog({"counts": model})
    await run_turn(agent, models=models, recorder=recorder, compact=compact)


def told(recorder: MemoryRecorder) -> list[event_pb2.ContextLimitExceeded]:
    events = (*recorder.stored, *recorder.waits)
    return [e.context_limit_exceeded for e in events if e.HasField("context_limit_exceeded")]


async def test_a_conversation_that_fits_is_given_whole() -> None:
    model, recorder = Counts(100_000), recorder_of(5)
    await turn(model, recorder)
    assert model.given == list(range(1, 12))
    assert told(recorder) == []


async def test_of_one_that_does_not_fit_the_newest_is_given_and_the_record_says_so() -> None:
    model, recorder = Counts(2_000), recorder_of(20)
    await turn(model, recorder)
    assert model.given[-1] == 41
    assert model.given == list(range(model.given[0], 42))
    assert 1 < model.given[0] < 41
    assert recorder.stored[model.given[0] - 1].HasField("input_message")
    given = sum(map(estimate_event, model.requests[-1].history))
    assert given <= 1_500, "a quarter is left to the answer"
    (event,) = told(recorder)
    assert event.context_limit == 2_000
    assert event.actual_tokens > 2_000
    assert f"{event.actual_tokens:,}" in event.message


async def test_the_room_for_the_answer_is_what_the_parameters_give_it() -> None:
    small, large = Counts(2_000), Counts(2_000)
    for model, tokens in ((small, 200), (large, 1_000)):
        agent = make_agent("counts", {"max_tokens": tokens})
        models = ModelCatalog({"counts": model})
        await run_turn(agent, models=models, recorder=recorder_of(20))
    assert len(small.given) > len(large.given)


@pytest.mark.parametrize("says_numbers", [True, False])
async def test_a_provider_that_counts_more_is_believed(says_numbers: bool) -> None:  # noqa: FBT001
    model = Counts(None, takes=3_000, count=len, says_numbers=says_numbers)
    recorder = recorder_of(8, words=50)
    await turn(model, recorder)
    assert model.refused
    assert len(model.refused) <= (1 if says_numbers else 4)
    assert model.given[-1] == 17
    assert len(told(recorder)) == 1


async def test_what_a_provider_counted_is_believed_for_the_next_call() -> None:
    # Its answers are asked for twice; the second time by what it said of the first.
    model = Counts(4_000, count=lambda text: 2 * estimate_text(text))
    agent = make_agent("counts")
    parser = agent.first_step.output_parser.structured
    parser.schema_name, parser.json_schema_json = "None", '{"type": "null"}'
    with pytest.raises(AgentProcessingFailed):
        await run_turn(agent, models=ModelCatalog({"counts": model}), recorder=recorder_of(20))
    first, second = model.requests
    assert len(second.history) < len(first.history)


async def test_an_input_that_no_model_takes_ends_the_turn() -> None:
    model = Counts(None, takes=5)
    recorder = recorder_of(3)
    with pytest.raises(AgentProcessingFailed, match="too long for the model"):
        await turn(model, recorder)
    assert len(model.refused) <= 4
    assert len(told(recorder)) == 1


async def test_by_threshold_the_beginning_is_summarised() -> None:
    model, recorder = Counts(10_000), recorder_of(20)
    settings = agent_pb2.CompactionSettings(keep_recent_inputs=3, threshold_percent=60)
    await turn(model, recorder, settings)
    asked, answered = model.requests
    assert asked.tools == ()
    summarised = [event.sequence for event in asked.summary_of]
    assert summarised == list(range(1, 35))
    text = asked.history[0].input_message.messages[0].text.content
    assert "User: Question 0 bee" in text
    assert "Agent: Answer 16 wax" in text
    hidden = [e.sequence for e in recorder.stored if e.hide_reason]
    assert hidden == summarised
    assert answered.history[0].compaction.summary_text == "They spoke of bees."
    assert [e.sequence for e in answered.history[1:]] == [35, 36, 37, 38, 39, 40, 41]
    compaction = answered.history[0].compaction
    assert (compaction.turns_compacted, compaction.events_compacted) == (17, 34)
    assert told(recorder) == []


async def test_below_the_threshold_nothing_is_summarised() -> None:
    model, recorder = Counts(10_000), recorder_of(10)
    await turn(model, recorder, agent_pb2.CompactionSettings(threshold_percent=80))
    assert len(model.requests) == 1
    await turn(model, recorder_of(10), agent_pb2.CompactionSettings(threshold_percent=10))
    assert len(model.requests) == 3


async def test_a_threshold_summary_that_fails_leaves_out_what_is_oldest() -> None:
    model, recorder = Counts(2_000), recorder_of(20)
    model.summary = None
    await turn(model, recorder, agent_pb2.CompactionSettings())
    assert model.given[-1] == 41
    assert 1 < model.given[0] < 41
    assert not any(event.hide_reason for event in recorder.stored)


async def test_a_long_conversation_is_summarised_piece_by_piece() -> None:
    model, recorder = Counts(3_000, takes=3_000), recorder_of(40)
    await turn(model, recorder, compact=turn_pb2.Compact(message="The wax"))
    assert len(model.requests) > 3
    pieces = [request.summary_of for request in model.requests]
    for before, piece in pairwise(pieces):
        assert piece[0].compaction.summary_text == "They spoke of bees."
        assert piece[1].sequence == before[-1].sequence + 1
    for request in model.requests:
        assert (
            "keep above all: The wax" in request.history[0].input_message.messages[0].text.content
        )
    # The running turn is the compaction's own; nobody has answered its input here.
    assert recorder.waits[-1].compaction.events_compacted == 80


async def test_pieces_become_smaller_when_the_provider_counts_more() -> None:
    model, recorder = Counts(None, takes=2_000), recorder_of(40)
    await turn(model, recorder, compact=turn_pb2.Compact())
    assert model.refused
    assert recorder.waits[-1].compaction.events_compacted == 80


def test_the_estimate_is_rather_too_high() -> None:
    # As counted by tokenizers of the models in use: words of English prose 1.3 tokens at most.
    prose = "The quick brown fox jumps over the lazy dog, and nobody minds. " * 10
    assert 1.3 * len(prose.split()) < estimate_text(prose) < 3 * len(prose.split())
    assert estimate_text("123456") == 6
    assert estimate_text("養蜂業") >= 4
    assert estimate_text("") == 0
    assert estimate_text(prose) <= len(prose)
    assert estimate_setting((prose,), (), None) > estimate_text(prose)
