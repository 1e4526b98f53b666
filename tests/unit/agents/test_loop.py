"""The agent loop: what goes on record, when, and in which order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from hansard.v1 import event_pb2
from hansard_server.agents.api import (
    Json,
    ModelFailed,
    ModelRequest,
    Part,
    TextDelta,
    TextEnd,
    TextKind,
    ToolCall,
    ToolContext,
    ToolError,
)
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.tools.catalog import ToolCatalog
from hansard_server.domain.errors import (
    AgentProcessingFailed,
    ModelUnavailable,
    StoreUnavailable,
)
from hansard_server.domain.records import Usage
from tests.support.agents import MemoryRecorder, make_agent, message, run_turn

THINKING, OUTPUT = TextKind.THINKING, TextKind.OUTPUT
SLOW = AgentLimits(settle_s=60)


@dataclass
class Says:
    """A model that says what a function gives for each step."""

    answer: Callable[[ModelRequest], AsyncIterator[Part]]
    requests: list[ModelRequest] = field(default_factory=list)

    context_tokens: int | None = None

    def check_parameters(self, parameters: Mapping[str, Json]) -> None: ...

    def respond(self, request: ModelRequest) -> AsyncIterator[Part]:
        self.requests.append(request)
        return self.answer(request)


def says(*steps: Sequence[Part]) -> Says:
    async def answer(request: ModelRequest) -> AsyncIterator[Part]:
        for part in steps[request.step]:
            yield part

    return Says(answer)


def says_slowly(parts: Sequence[Part]) -> Says:
    async def answer(_: ModelRequest) -> AsyncIterator[Part]:
        for part in parts:
            await asyncio.sleep(0.001)
            yield part

    return Says(answer)


@dataclass
class Tool:
    """A tool that a function is."""

    call: Callable[[Mapping[str, Json]], Any]
    name: str = "artifact_read"
    description: str = "A tool."
    input_schema: Mapping[str, Json] = field(
        default_factory=lambda: {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0}},
            "required": ["n"],
        }
    )

    async def run(self, arguments: Mapping[str, Json], _context: ToolContext) -> Json:
        result = self.call(arguments)
        return await result if asyncio.iscoroutine(result) else result


def call(n: object = 1, name: str = "artifact_read") -> ToolCall:
    return ToolCall(name=name, arguments_json=json.dumps({"n": n}))


async def run(
    model: Says,
    tool: Tool | None = None,
    limits: AgentLimits = SLOW,
    recorder: MemoryRecorder | None = None,
) -> MemoryRecorder:
    return await run_turn(
        make_agent("test/model", tools=["artifact_read"]),
        models=ModelCatalog({"test/model": model}),
        tools=ToolCatalog(*((tool,) if tool else ())),
        limits=limits,
        recorder=recorder,
    )


TWO_TEXTS: Sequence[Part] = (
    TextDelta(THINKING, "a"),
    TextDelta(THINKING, "b"),
    TextDelta(OUTPUT, "c"),
    TextEnd(),
)


async def test_texts_become_events_and_the_last_ones_wait() -> None:
    record = await run(says_slowly(TWO_TEXTS))
    assert record.kinds == ["input_message", "thinking", "agent_output"]
    assert record.texts("thinking") == ["ab"]
    assert [e.agent_output.content for e in record.waits] == ["c"]
    # The thought is on disk before anything of the answer is shown.
    assert record.deltas == [(THINKING, "a"), (THINKING, "b"), None, (OUTPUT, "c")]


async def test_what_is_ready_at_the_same_moment_is_written_together() -> None:
    record = await run(says(TWO_TEXTS))
    assert record.batches == []
    assert [event.WhichOneof("payload") for event in record.waits] == ["thinking", "agent_output"]
    # Nothing of the answer before the thought is on disk.
    assert record.deltas == [(THINKING, "a"), (THINKING, "b")]


async def test_a_text_behind_an_event_is_shown_as_soon_as_the_model_pauses() -> None:
    go_on = asyncio.Event()

    async def answer(_: ModelRequest) -> AsyncIterator[Part]:
        for part in TWO_TEXTS:
            yield part
        yield TextDelta(OUTPUT, "d")
        await go_on.wait()
        yield TextDelta(OUTPUT, "e")

    record = MemoryRecorder()
    record.store(message("q"))
    turn = asyncio.create_task(run(Says(answer), limits=SLOW, recorder=record))
    await asyncio.wait_for(record.flushed.wait(), 5)
    # `c` was whole before, and is written with the thought.
    assert record.batches == [2]
    assert record.deltas[-1] == (OUTPUT, "d")
    go_on.set()
    await turn
    assert record.texts("agent_output") == ["c", "de"]


async def test_a_failed_write_stops_the_model_that_pauses() -> None:
    closed = asyncio.Event()

    async def answer(_: ModelRequest) -> AsyncIterator[Part]:
        try:
            yield TextDelta(THINKING, "a")
            yield TextEnd()
            await asyncio.Event().wait()
        finally:
            closed.set()

    class Refusing(MemoryRecorder):
        async def flush(self) -> None:
            if self.waits:
                raise StoreUnavailable("no")

    record = Refusing()
    record.store(message("q"))
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(run(Says(answer), limits=AgentLimits(), recorder=record), 5)
    assert closed.is_set()


async def test_a_model_stays_in_one_task() -> None:
    tasks = []

    async def answer(_: ModelRequest) -> AsyncIterator[Part]:
        for _number in range(3):
            tasks.append(asyncio.current_task())
            yield TextDelta(THINKING, "a")
            yield TextEnd()
            await asyncio.sleep(0.01)
            tasks.append(asyncio.current_task())

    await run(Says(answer), limits=AgentLimits(settle_s=0.001))
    assert len(set(tasks)) == 1


async def test_texts_of_one_kind_are_told_apart_by_their_end() -> None:
    record = await run(says([TextDelta(OUTPUT, "a"), TextEnd(b"x"), TextDelta(OUTPUT, "b")]))
    assert record.texts("agent_output") == ["a", "b"]
    assert record.waits[0].agent_output.provider_data == b"x"


async def test_provider_data_without_text_is_kept() -> None:
    record = await run(says([TextEnd(b"sealed"), TextDelta(OUTPUT, "a")]))
    assert record.waits[0].thinking.provider_data == b"sealed"


async def test_a_finished_text_is_written_while_the_model_pauses() -> None:
    go_on = asyncio.Event()

    async def answer(_: ModelRequest) -> AsyncIterator[Part]:
        yield TextDelta(THINKING, "a")
        yield TextEnd()
        await go_on.wait()
        yield TextDelta(OUTPUT, "b")

    record = MemoryRecorder()
    record.store(message("q"))
    turn = asyncio.create_task(run(Says(answer), limits=AgentLimits(), recorder=record))
    await asyncio.wait_for(record.flushed.wait(), 5)
    assert record.kinds == ["input_message", "thinking"]
    go_on.set()
    await turn
    assert record.kinds == ["input_message", "thinking", "agent_output"]


async def test_calls_run_side_by_side_and_answer_in_order() -> None:
    running: list[int] = []
    all_run = asyncio.Event()

    async def work(n: int) -> Json:
        running.append(n)
        if len(running) == 3:
            all_run.set()
        await all_run.wait()
        return {"n": n}

    record = await run(
        says(
            [TextDelta(THINKING, "t"), call(3), call(2), call(1), Usage(1, 2, 3)],
            [TextDelta(OUTPUT, "done"), Usage(1, 1, 1)],
        ),
        Tool(lambda arguments: work(arguments["n"])),
    )
    assert record.kinds == [
        *("input_message", "thinking", "tool_input", "tool_input", "tool_input"),
        *("tool_output", "tool_output", "tool_output", "agent_output"),
    ]
    # All of the model call in one write, before any tool runs.
    assert record.batches[0] == 4
    assert [json.loads(o.tool_output_json)["n"] for o in record.outputs()] == [3, 2, 1]
    inputs = [e.tool_input.tool_call_id for e in record.stored if e.HasField("tool_input")]
    assert [o.tool_call_id for o in record.outputs()] == inputs
    assert len(set(inputs)) == 3
    assert {o.outcome for o in record.outputs()} == {event_pb2.TOOL_OUTCOME_COMPLETED}
    assert record.usage == Usage(2, 3, 4)


async def test_the_next_model_call_sees_the_outputs() -> None:
    model = says([call(1)], [TextDelta(OUTPUT, "x")])
    await run(model, Tool(lambda _: {"ok": True}))
    assert [e.WhichOneof("payload") for e in model.requests[1].history] == [
        "input_message",
        "tool_input",
        "tool_output",
    ]
    assert [request.step for request in model.requests] == [0, 1]


def fail_with(error: Exception) -> Callable[[Mapping[str, Json]], Json]:
    def work(_: Mapping[str, Json]) -> Json:
        raise error

    return work


@pytest.mark.parametrize(
    ("made", "work", "says_why"),
    [
        (call(1), fail_with(ToolError("no such line")), "no such line"),
        (call(1), fail_with(RuntimeError("/secret/path")), "failed unexpectedly"),
        (call("x"), dict, "n: 'x' is not of type 'integer'"),
        (call(-1), dict, "n: -1 is less than the minimum of 0"),
        (ToolCall("artifact_read", "{}"), dict, "'n' is a required property"),
        (ToolCall("artifact_read", "[1]"), dict, "must be a JSON object"),
        (ToolCall("artifact_read", '{"n": '), dict, "not JSON"),
        (ToolCall("artifact_read", '{"n": NaN}'), dict, "not JSON"),
        (ToolCall("artifact_read", "[" * 100_000), dict, "not JSON"),
        (ToolCall("artifact_read", '"' + "a" * 900_000 + '"'), dict, "at most"),
        (call(1, "lookup"), dict, "There is no tool 'lookup'. Tools: artifact_read."),
        (call(1), lambda _: {"x": object()}, "failed unexpectedly"),
    ],
)
async def test_a_failing_tool_does_not_end_the_turn(
    made: ToolCall, work: Callable[[Mapping[str, Json]], Json], says_why: str
) -> None:
    record = await run(says([made], [TextDelta(OUTPUT, "ok")]), Tool(work))
    (output,) = record.outputs()
    assert output.error
    assert output.outcome == event_pb2.TOOL_OUTCOME_FAILED
    assert says_why in json.loads(output.tool_output_json)["error"]
    assert "/secret" not in output.tool_output_json
    assert record.texts("agent_output") == ["ok"]
    for event in record.stored:
        assert event.ByteSize() < 1024 * 1024
        if event.HasField("tool_input"):
            json.loads(event.tool_input.tool_input_json)


async def test_arguments_are_recorded_byte_for_byte() -> None:
    text = '{ "n" :1.0e0,"n":2 }'
    record = await run(says([ToolCall("artifact_read", text)], []), Tool(dict))
    assert record.stored[1].tool_input.tool_input_json == text


async def test_a_tool_that_hangs_times_out() -> None:
    record = await run(
        says([call()], [TextDelta(OUTPUT, "ok")]),
        Tool(lambda _: asyncio.Event().wait()),
        AgentLimits(tool_max_s=0.01),
    )
    assert record.outputs()[0].outcome == event_pb2.TOOL_OUTCOME_TIMED_OUT
    assert record.outputs()[0].error


async def test_a_large_output_is_cut_to_fit() -> None:
    record = await run(
        says([call()], [TextDelta(OUTPUT, "ok")]), Tool(lambda _: {"x": '"\x01é' * 500_000})
    )
    (output,) = record.outputs()
    assert output.ByteSize() < 1024 * 1024
    result = json.loads(output.tool_output_json)
    assert result["truncated"] is True
    assert result["beginning"].startswith('{"x":"')
    assert not output.error


async def test_what_utf8_cannot_hold_is_replaced() -> None:
    record = await run(
        says([TextDelta(OUTPUT, "a\ud800b"), call()], [TextDelta(OUTPUT, "ok")]),
        Tool(lambda _: {"x": "\udfff"}),
    )
    assert record.texts("agent_output")[0] == "a?b"


async def test_the_limit_of_steps_ends_the_turn() -> None:
    async def answer(_: ModelRequest) -> AsyncIterator[Part]:
        yield call()

    model = Says(answer)
    with pytest.raises(AgentProcessingFailed, match="3 model calls"):
        await run(model, Tool(lambda _: {}), AgentLimits(steps_per_turn=3))
    assert len(model.requests) == 3


async def test_a_model_that_fails_leaves_its_text_open() -> None:
    async def answer(_: ModelRequest) -> AsyncIterator[Part]:
        yield TextDelta(OUTPUT, "half")
        raise ModelFailed("out of words")

    record = MemoryRecorder()
    record.store(message("q"))
    with pytest.raises(AgentProcessingFailed, match="out of words"):
        await run(Says(answer), recorder=record)
    assert record.open_text == (OUTPUT, "half")


async def test_too_many_calls_in_one_answer_end_the_turn() -> None:
    with pytest.raises(AgentProcessingFailed, match="more than 2 tool calls"):
        await run(says([call()] * 3), Tool(dict), AgentLimits(calls_per_step=2))


async def test_provider_data_without_measure_ends_the_turn() -> None:
    with pytest.raises(AgentProcessingFailed, match="wants 200,000 bytes back"):
        await run(says([TextDelta(THINKING, "a"), TextEnd(b"x" * 200_000)]))


async def test_an_unknown_model_is_unavailable() -> None:
    with pytest.raises(ModelUnavailable, match=r"'acme/gpt'.*hansard/extractive"):
        await run_turn(make_agent("acme/gpt"))


async def test_cancelling_the_turn_cancels_its_tools_and_its_model() -> None:
    started = asyncio.Event()
    ended: list[str] = []

    async def work() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("tool")

    turn = asyncio.create_task(run(says([call(), call()]), Tool(lambda _: work())))
    await started.wait()
    await asyncio.sleep(0)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert ended == ["tool", "tool"]

    async def answer(_: ModelRequest) -> AsyncIterator[Part]:
        try:
            yield TextDelta(OUTPUT, "a")
            yield TextEnd()
            started.set()
            await asyncio.Event().wait()
        finally:
            ended.append("model")

    started.clear()
    turn = asyncio.create_task(run(Says(answer)))
    await started.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert ended[-1] == "model"
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_only_so_many_tools_run_at_a_time() -> None:
    running, most = 0, 0

    async def work() -> Json:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return {}

    await run(
        says([call()] * 9, [TextDelta(OUTPUT, "x")]),
        Tool(lambda _: work()),
        AgentLimits(parallel_calls=3),
    )
    assert most == 3


def open_turn() -> MemoryRecorder:
    """A turn whose owner died in its second step, while two tools ran, one of which answered."""
    record = MemoryRecorder()
    record.store(message("q"))
    for name in ("old", "a", "b", "c"):
        event = event_pb2.Event()
        event.tool_input.tool_call_id = f"call_{name}"
        event.tool_input.tool_configuration_name = "artifact_read"
        event.tool_input.tool_name = "artifact_read"
        event.tool_input.tool_input_json = '{"n": 7}'
        record.store(event)
        if name == "old":
            output = event_pb2.Event()
            output.tool_output.tool_call_id = "call_old"
            record.store(output)
    output = event_pb2.Event()
    output.tool_output.tool_call_id = "call_a"
    record.store(output)
    return record


@pytest.mark.parametrize("rerun_safe", [True, False])
async def test_open_calls_of_a_dead_owner_get_their_outputs(rerun_safe: bool) -> None:  # noqa: FBT001
    record = open_turn()
    model = says([], [], [TextDelta(OUTPUT, "done")])
    agent = make_agent("test/model", tools=["artifact_read"])
    agent.tool_configurations["artifact_read"].rerun_safe = rerun_safe
    await run_turn(
        agent,
        models=ModelCatalog({"test/model": model}),
        tools=ToolCatalog(Tool(lambda arguments: {"again": arguments["n"]})),
        recorder=record,
    )
    assert [request.step for request in model.requests] == [2]
    outputs = record.outputs()
    assert [o.tool_call_id for o in outputs] == ["call_old", "call_a", "call_b", "call_c"]
    if rerun_safe:
        assert [json.loads(o.tool_output_json) for o in outputs[2:]] == [{"again": 7}] * 2
    else:
        assert {o.outcome for o in outputs[2:]} == {event_pb2.TOOL_OUTCOME_INTERRUPTED}
        assert all(o.error for o in outputs[2:])
