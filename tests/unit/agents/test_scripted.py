"""`hansard/scripted`: exactly what the script says, in the pieces that it says."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import event_pb2
from hansard_server.agents.api import TextKind
from hansard_server.agents.models.script import parse_script, split_segments, split_text
from hansard_server.domain.errors import AgentProcessingFailed, InvalidAgentConfiguration
from hansard_server.domain.records import Usage
from tests.support.agents import MemoryFiles, MemoryRecorder, make_agent, message, run_turn


async def play(*items: dict[str, Any], **more: Any) -> MemoryRecorder:
    agent = make_agent(parameters={"script": list(items)}, tools=["artifact_read"])
    return await run_turn(agent, **more)


async def test_a_script_is_played_item_by_item() -> None:
    record = await play(
        {"thinking": {"deltas": ["a", "b"], "pause_ms": 1}},
        {"tool_call": {"name": "lookup", "input": {"q": 1}, "output": {"found": True}}},
        {"tool_call": {"name": "lookup", "output": {"x": 0}, "error": True, "pause_ms": 1}},
        {"usage": {"input_tokens": 3}},
        {"pause_ms": 10},
        {"agent_output": {"content": "héllo wörld", "delta_count": 4}},
        {"usage": {"output_tokens": 5, "reasoning_tokens": 1}},
    )
    assert record.kinds == [
        *("input_message", "thinking", "tool_input", "tool_input"),
        *("tool_output", "tool_output", "agent_output"),
    ]
    assert record.stored[2].tool_input.tool_input_json == '{"q":1}'
    first, second = record.outputs()
    assert (first.tool_output_json, first.error) == ('{"found":true}', False)
    assert first.outcome == event_pb2.TOOL_OUTCOME_COMPLETED
    assert (second.tool_output_json, second.error) == ('{"x":0}', True)
    assert second.outcome == event_pb2.TOOL_OUTCOME_FAILED
    assert record.texts("agent_output") == ["héllo wörld"]
    shown = [delta for delta in record.deltas if delta and delta[0] is TextKind.OUTPUT]
    assert len(shown) == 4
    assert record.usage == Usage(3, 5, 1)


async def test_two_texts_of_a_kind_are_two_events() -> None:
    record = await play({"agent_output": {"content": "a"}}, {"agent_output": {"content": "b"}})
    assert record.texts("agent_output") == ["a", "b"]


async def test_a_pause_makes_two_steps_of_two_calls() -> None:
    called = {"tool_call": {"name": "x", "output": 1}}
    record = await play(called, {"pause_ms": 0}, called)
    calls = ["tool_input", "tool_output"]
    assert record.kinds == ["input_message", *calls, *calls]


async def test_a_call_without_output_runs_the_tool() -> None:
    record = await play(
        {"tool_call": {"name": "artifact_read", "input": {"artifact_id": "art_a_txt"}}},
        files=MemoryFiles({"a.txt": b"one\ntwo\n"}),
    )
    lines = json.loads(record.outputs()[0].tool_output_json)["lines"]
    assert [line["text"] for line in lines] == ["one", "two"]


async def test_exact_json_stays_exact() -> None:
    record = await play({"tool_call": {"name": "x", "input_json": "{ }", "output_json": "[ 1.0 ]"}})
    assert record.stored[1].tool_input.tool_input_json == "{ }"
    assert record.outputs()[0].tool_output_json == "[ 1.0 ]"


async def test_pauses_are_kept() -> None:
    begun = time.monotonic()
    await play({"agent_output": {"deltas": ["a"] * 5, "pause_ms": 10}}, {"pause_ms": 20})
    assert time.monotonic() - begun >= 0.07


async def test_fail_ends_the_turn() -> None:
    with pytest.raises(AgentProcessingFailed, match="no more"):
        await play({"agent_output": {"content": "a"}}, {"fail": "no more"})


async def test_a_turn_taken_over_goes_on_behind_its_last_stored_text() -> None:
    record = MemoryRecorder()
    record.store(message("earlier"), turn_id="trn_before")
    record.store(event_pb2.Event(thinking=event_pb2.Thinking(content="old")), turn_id="trn_before")
    record.store(message("q"))
    record.store(event_pb2.Event(thinking=event_pb2.Thinking(content="a")))
    await play(
        {"thinking": {"content": "a"}},
        {"thinking": {"content": "b"}},
        {"tool_call": {"name": "x", "output": 1}},
        {"agent_output": {"content": "c"}},
        recorder=record,
    )
    assert record.texts("thinking") == ["old", "a", "b"]
    assert record.kinds[-3:] == ["tool_input", "tool_output", "agent_output"]


async def test_echo_shows_what_the_model_was_given() -> None:
    agent = make_agent(parameters={"echo": "instructions"})
    agent.first_step.instructions.add().inline.template = "Be ${kind|'kind'}."
    record = await run_turn(agent)
    assert record.texts("thinking") == ["Be kind.\n"]
    assert record.texts("agent_output") == ["I was given 1 instructions."]

    record = MemoryRecorder()
    record.store(message("first", "art_x"))
    record.store(event_pb2.Event(agent_output=event_pb2.AgentOutput(content="answer")))
    await run_turn(make_agent(parameters={"echo": "history"}), recorder=record)
    assert record.texts("thinking") == ["1 input_message: first [art_x]\n2 agent_output: answer\n"]

    record = await run_turn(make_agent(parameters={"echo": "tools"}, tools=["artifact_read"]))
    assert record.texts("thinking")[0].startswith("artifact_read: Reads lines")


async def test_without_parameters_there_is_a_short_answer() -> None:
    record = await run_turn(make_agent())
    assert record.kinds == ["input_message", "agent_output"]


@given(st.text(min_size=1), st.integers(1, 300))
def test_pieces_joined_are_the_content(content: str, count: int) -> None:
    pieces = split_text(content, count)
    assert "".join(pieces) == content
    assert all(pieces)
    assert len(pieces) == min(count, len(content))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


ITEMS = st.sampled_from(
    [
        {"thinking": {"content": "a"}},
        {"agent_output": {"deltas": ["a"]}},
        {"tool_call": {"name": "x"}},
        {"pause_ms": 1},
        {"usage": {}},
        {"fail": "x"},
    ]
)


@given(st.lists(ITEMS, min_size=1, max_size=20))
def test_segments_joined_are_the_script(items: list[dict[str, Any]]) -> None:
    script = parse_script({"script": items})
    segments = split_segments(script.items)
    assert tuple(item for segment in segments for item in segment) == script.items
    assert all(segments)


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"skript": []}, "skript"),
        ({"script": []}, "script"),
        ({"script": {}}, "script"),
        ({"script": ["x"]}, "script[0]"),
        ({"script": [{}]}, "script[0]"),
        ({"script": [{"pause_ms": 1, "fail": "x"}]}, "script[0]"),
        ({"script": [{"say": "x"}]}, "script[0].say"),
        ({"script": [{"pause_ms": -1}]}, "script[0].pause_ms"),
        ({"script": [{"pause_ms": 60_001}]}, "script[0].pause_ms"),
        ({"script": [{"pause_ms": True}]}, "script[0].pause_ms"),
        ({"script": [{"pause_ms": float("nan")}]}, "script[0].pause_ms"),
        ({"script": [{"fail": ""}]}, "script[0].fail"),
        ({"script": [{"thinking": {}}]}, "script[0].thinking.content"),
        ({"script": [{"thinking": {"content": 1}}]}, "script[0].thinking.content"),
        ({"script": [{"thinking": "a"}]}, "script[0].thinking"),
        (
            {"script": [{"thinking": {"content": "a", "deltas": ["a"]}}]},
            "script[0].thinking.content",
        ),
        (
            {"script": [{"thinking": {"deltas": ["a"], "delta_count": 1}}]},
            "script[0].thinking.delta_count",
        ),
        ({"script": [{"thinking": {"deltas": ["a", ""]}}]}, "script[0].thinking.deltas[1]"),
        ({"script": [{"thinking": {"deltas": []}}]}, "script[0].thinking.deltas"),
        (
            {"script": [{"agent_output": {"content": "a", "delta_count": 10_001}}]},
            "script[0].agent_output.delta_count",
        ),
        (
            {"script": [{"agent_output": {"content": "a", "delta_count": 1.5}}]},
            "script[0].agent_output.delta_count",
        ),
        ({"script": [{"tool_call": {"input": {}}}]}, "script[0].tool_call.name"),
        ({"script": [{"tool_call": {"name": "x", "pause_ms": 1}}]}, "script[0].tool_call.pause_ms"),
        ({"script": [{"tool_call": {"name": "x", "error": True}}]}, "script[0].tool_call.error"),
        (
            {"script": [{"tool_call": {"name": "x", "output": 1, "error": 1}}]},
            "script[0].tool_call.error",
        ),
        (
            {"script": [{"tool_call": {"name": "x", "output_json": "{"}}]},
            "script[0].tool_call.output_json",
        ),
        (
            {"script": [{"tool_call": {"name": "x", "input": 1, "input_json": "1"}}]},
            "script[0].tool_call.input_json",
        ),
        ({"script": [{"usage": {"input_tokens": -1}}]}, "script[0].usage.input_tokens"),
        ({"script": [{"usage": {"tokens": 1}}]}, "script[0].usage.tokens"),
        ({"echo": "everything"}, "echo"),
        ({"echo": ["history"]}, "echo"),
        ({"echo": "history", "script": [{"pause_ms": 1}]}, "echo"),
    ],
)
def test_a_malformed_script_is_refused(parameters: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidAgentConfiguration) as caught:
        parse_script(parameters)
    assert [v.field for v in caught.value.violations] == [f"model.parameters.{path}"]


def test_the_bounds_themselves_are_fine() -> None:
    parse_script(
        {
            "script": [
                {"pause_ms": 60_000},
                {"thinking": {"content": "a", "delta_count": 10_000}},
                {"agent_output": {"deltas": ["a"] * 10_000}},
            ]
        }
    )
