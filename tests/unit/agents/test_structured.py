"""Answers of a JSON schema: taken, repaired, refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from hansard.v1 import agent_pb2
from hansard_server.agents.api import (
    Json,
    ModelRequest,
    Part,
    ScriptedResult,
    TextDelta,
    TextKind,
    ToolCall,
)
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.domain.errors import AgentProcessingFailed
from tests.support.agents import MemoryRecorder, make_agent, message, run_turn

SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'


class Says:
    """Says one text after the other, call by call, and keeps what it was asked."""

    context_tokens: int | None = None

    def __init__(self, *answers: list[Part]) -> None:
        self.answers = list(answers)
        self.requests: list[ModelRequest] = []

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        pass

    async def respond(self, request: ModelRequest) -> AsyncIterator[Part]:
        self.requests.append(request)
        for part in self.answers[len(self.requests) - 1]:
            yield part


def text(*deltas: str) -> list[Part]:
    return [TextDelta(TextKind.OUTPUT, delta) for delta in deltas]


def agent(**parameters: Any) -> agent_pb2.Agent:
    made = make_agent("says", parameters)
    parser = made.first_step.output_parser.structured
    parser.schema_name, parser.json_schema_json = "Number", SCHEMA
    return made


async def turn(model: Says, recorder: MemoryRecorder) -> MemoryRecorder:
    recorder.store(message("How many?"))
    return await run_turn(agent(), models=ModelCatalog({"says": model}), recorder=recorder)


@pytest.mark.parametrize(
    "said", ['{"n": 1 }', ' {"n": 1 }\n', '```json\n{"n": 1 }\n```', '```\n{"n": 1 }\n```  ']
)
async def test_an_answer_that_fits_is_kept_word_for_word(said: str) -> None:
    model, recorder = Says(text(said[:4], said[4:])), MemoryRecorder()
    await turn(model, recorder)
    assert recorder.kinds == ["input_message", "structured_output"]
    assert recorder.waits[-1].structured_output.content_json == '{"n": 1 }'
    assert recorder.waits[-1].structured_output.schema_name == "Number"
    assert recorder.deltas == []
    schema = model.requests[0].output_schema
    assert schema is not None
    assert (schema.name, schema.json_schema["required"]) == ("Number", ["n"])


async def test_an_answer_that_does_not_fit_is_repaired_once() -> None:
    model = Says([TextDelta(TextKind.THINKING, "Hm."), *text('{"n": "one"}')], text('{"n": 1}'))
    recorder = MemoryRecorder()
    await turn(model, recorder)
    assert recorder.kinds == ["input_message", "thinking", "structured_output"]
    again = model.requests[1]
    assert again.step == 1
    assert [event.WhichOneof("payload") for event in again.history] == [
        *("input_message", "thinking", "agent_output", "input_message")
    ]
    assert again.history[-2].agent_output.content == '{"n": "one"}'
    told = again.history[-1].input_message.messages[0].text.content
    assert "$.n: 'one' is not of type 'integer'" in told


async def test_a_second_answer_that_does_not_fit_ends_the_turn() -> None:
    recorder = MemoryRecorder()
    with pytest.raises(AgentProcessingFailed, match=r"Number.*'n' is a required property"):
        await turn(Says(text("one"), text("{}")), recorder)
    assert recorder.kinds == ["input_message"]
    assert recorder.deltas == []


async def test_what_comes_with_tool_calls_is_a_text_as_usual() -> None:
    call = ToolCall("look", "{}", scripted_result=ScriptedResult('{"found": 1}'))
    model = Says([*text("I look", " it up."), call, *text("Wait.")], text('{"n": 3}'))
    recorder = MemoryRecorder()
    await turn(model, recorder)
    assert recorder.kinds == [
        *("input_message", "agent_output", "tool_input", "agent_output", "tool_output"),
        "structured_output",
    ]
    assert recorder.texts("agent_output") == ["I look it up.", "Wait."]


async def test_an_answer_that_is_too_large_is_not_kept_in_memory() -> None:
    model = Says(text(*['"' + "x" * 100_000] * 50), text('{"n": 1}'))
    recorder = MemoryRecorder()
    await turn(model, recorder)
    told = model.requests[1].history[-1].input_message.messages[0].text.content
    assert "bytes" in told
    assert recorder.kinds == ["input_message", "structured_output"]


async def test_a_script_plays_answers_and_their_repair() -> None:
    made = agent(
        script=[
            {"structured_output": {"content_json": '{"n":"one"}'}},
            {"structured_output": {"content": {"n": 1}}},
        ]
    )
    made.model.name = "hansard/scripted"
    recorder = await run_turn(made)
    assert recorder.waits[-1].structured_output.content_json == '{"n":1}'
