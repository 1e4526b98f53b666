"""What a model gets of a session's events."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import event_pb2
from hansard_server.agents.history import call_id, is_input, model_history, model_units


def event(kind: str, call: str = "", turn: str = "t1") -> event_pb2.Event:
    made = event_pb2.Event(turn_id=turn)
    payload = getattr(made, kind)
    payload.SetInParent()
    if call:
        payload.tool_call_id = call
    return made


def number(events: Sequence[event_pb2.Event]) -> list[event_pb2.Event]:
    for sequence, made in enumerate(events, 1):
        made.sequence = sequence
    return list(events)


def size_of(event: event_pb2.Event) -> int:
    return event.ByteSize()


def order(*events: event_pb2.Event, max_tokens: float | None = None) -> list[int]:
    history = model_history(number(events), max_tokens=max_tokens, count=size_of)
    return [e.sequence for e in history.events]


def test_outputs_follow_their_inputs_and_what_lay_between_comes_after() -> None:
    assert order(
        event("input_message"),
        event("thinking"),
        event("tool_input", "a"),
        event("artifact_upload", turn=""),
        event("tool_input", "b"),
        event("input_message", turn=""),
        event("tool_output", "a"),
        event("artifact_upload", turn=""),
        event("tool_output", "b"),
        event("agent_output"),
    ) == [1, 2, 3, 5, 7, 9, 4, 6, 8, 10]


def test_the_models_own_words_stay_between_its_calls() -> None:
    assert order(
        event("tool_input", "a"),
        event("thinking"),
        event("tool_input", "b"),
        event("agent_output"),
        event("tool_output", "a"),
        event("tool_output", "b"),
    ) == [1, 2, 3, 5, 6, 4]


def test_steps_that_follow_each_other_stay_apart() -> None:
    events = [event(kind, call) for call in "ab" for kind in ("tool_input", "tool_output")]
    assert order(*events) == [1, 2, 3, 4]


def test_a_call_that_was_left_open_does_not_join_a_later_turn() -> None:
    assert order(
        event("tool_input", "a", turn="t1"),
        event("input_message", turn="t2"),
        event("tool_input", "b", turn="t2"),
        event("tool_output", "b", turn="t2"),
        event("tool_output", "a", turn=""),
    ) == [1, 5, 2, 3, 4]


def test_what_the_model_must_not_see_is_left_out() -> None:
    hidden = event("thinking")
    hidden.hide_reason = event_pb2.HIDE_REASON_MANUAL
    tombstone = event_pb2.Event()
    tombstone.deleted_at.seconds = 1
    assert order(
        event("input_message"),
        event("custom"),
        hidden,
        tombstone,
        event("tool_input", "open"),
        event("tool_output", "no-input"),
        event("agent_output"),
    ) == [1, 7]


def test_the_newest_are_kept_and_the_question_always() -> None:
    events = [event("input_message"), *(event("agent_output") for _ in range(9))]
    size = number(events)[1].ByteSize()
    assert order(*events, max_tokens=3 * size) == [1, 9, 10]
    assert order(*events, max_tokens=0) == [1, 10]


def test_an_older_question_falls_away() -> None:
    events = [event("input_message", turn="t0"), event("agent_output"), event("input_message")]
    assert order(*events, max_tokens=0) == [3]


def test_a_summary_comes_before_what_was_kept() -> None:
    events = [
        event("input_message", turn="t1"),
        event("agent_output", turn="t1"),
        event("input_message", turn="t2"),
        event("compaction", turn="t2"),
        event("agent_output", turn="t2"),
    ]
    assert order(*events) == [4, 1, 2, 3, 5]
    # It says more than anything else that has its size.
    size = sum(size_of(events[place]) for place in (2, 3, 4))
    assert order(*events, max_tokens=size) == [4, 3, 5]


def test_what_is_left_begins_with_something_that_was_said_to_the_model() -> None:
    events = [
        event("input_message", turn="t1"),
        event("agent_output", turn="t1"),
        event("artifact_upload", turn=""),
        event("agent_output", turn="t1"),
        event("input_message", turn="t2"),
        event("agent_output", turn="t2"),
    ]
    size = sum(map(size_of, number(events)[1:]))
    assert order(*events, max_tokens=size) == [3, 4, 5, 6]
    # A conversation that the agent begins is left alone.
    assert order(*events[1:]) == [1, 2, 3, 4, 5]


KINDS = st.sampled_from(
    [
        *("input_message", "thinking", "agent_output", "structured_output", "custom"),
        *("artifact_upload", "tool_input", "tool_input", "compaction", "context_limit_exceeded"),
        "session_interrupted",
    ]
)
TOLD = ("input_message", "artifact_upload", "compaction")


@st.composite
def sessions(draw: st.DrawFn) -> list[event_pb2.Event]:
    """Any record that the service may hold: outputs come after their inputs, or never."""
    events: list[event_pb2.Event] = []
    waiting: list[tuple[str, str]] = []
    for index in range(draw(st.integers(0, 40))):
        turn: str = draw(st.sampled_from(["", "t1", "t2"]))
        answers = draw(st.booleans())
        if waiting and answers:
            call, turn = waiting.pop(draw(st.integers(0, len(waiting) - 1)))
            events.append(event("tool_output", call, turn))
            continue
        kind = draw(KINDS)
        call = f"c{index}" if kind == "tool_input" else ""
        if call:
            waiting.append((call, turn))
        made = event(kind, call, turn)
        if draw(st.integers(0, 9)) == 0:
            made.hide_reason = event_pb2.HIDE_REASON_MANUAL
        events.append(made)
    return number(events)


@given(sessions(), st.integers(0, 500))
def test_any_history_is_one_that_models_take(events: list[event_pb2.Event], budget: int) -> None:
    made = model_history(events, max_tokens=budget, count=size_of)
    whole = model_history(events, count=size_of)
    history, everything = made.events, whole.events
    # Each event once, and of each call both halves, in this order, together with their step.
    assert len({e.sequence for e in history}) == len(history)
    calls = [call_id(e) for e in history if call_id(e)]
    assert all(calls.count(call) == 2 for call in calls)
    open_calls: set[str] = set()
    answering = False
    for e in history:
        if e.HasField("tool_input"):
            assert not answering, "a step's answers are together"
            open_calls.add(e.tool_input.tool_call_id)
        elif e.HasField("tool_output"):
            open_calls.remove(e.tool_output.tool_call_id)
            answering = bool(open_calls)
        elif open_calls:
            # Between the calls of a step there are only the model's own words.
            assert not answering
            assert e.WhichOneof("payload") in ("thinking", "agent_output", "structured_output")
    # Summaries come first. What others said keeps its order, and so do the model's own words. They
    # may pass each other: what lay in between a step's events comes after them.
    said = ("thinking", "agent_output", "structured_output")
    first = [e.HasField("compaction") for e in everything]
    assert first == sorted(first, reverse=True)
    words = [e for e in everything if e.WhichOneof("payload") in said]
    summaries = [e for e in everything if e.HasField("compaction")]
    others = [e for e in everything if call_id(e) is None and e not in (*words, *summaries)]
    for kind in (words, summaries, others):
        assert [e.sequence for e in kind] == sorted(e.sequence for e in kind)
    assert not {"custom", "context_limit_exceeded"} & {e.WhichOneof("payload") for e in everything}
    assert not any(e.hide_reason for e in everything)


@given(sessions(), st.integers(0, 500))
def test_any_budget_keeps_the_newest(events: list[event_pb2.Event], budget: int) -> None:
    made = model_history(events, max_tokens=budget, count=size_of)
    whole = model_history(events, count=size_of)
    assert not whole.left_out
    assert (made.all_tokens, whole.tokens) == (whole.all_tokens, whole.all_tokens)
    assert made.tokens == sum(map(size_of, made.events))
    assert made.left_out == (len(made.events) < len(whole.events))
    assert whole.tokens > budget or not made.left_out
    # From the old end only, but for the question and summaries.
    kept = {e.sequence for e in made.events}
    free = [e for e in whole.events if not e.HasField("input_message")]
    flags = [e.sequence in kept for e in free if not e.HasField("compaction")]
    assert flags == sorted(flags)
    if not whole.events:
        return
    inputs = [e.sequence for e in events if e in whole.events and e.HasField("input_message")]
    assert whole.events[-1].sequence in kept
    assert not inputs or inputs[-1] in kept
    # What is over the budget is the newest question and the newest step.
    if made.tokens > budget:
        units = list(model_units(made.events))
        assert all(is_input(unit) for unit in units[:-1])
        assert len(units) <= 2
    if made.left_out:
        units = list(model_units(made.events))
        assert len(units) == 1 or units[0][0].WhichOneof("payload") in TOLD
