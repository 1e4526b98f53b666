"""What a model gets of a session's events."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import event_pb2
from hansard_server.agents.history import call_id, model_history

ALL = 10**9


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


def order(*events: event_pb2.Event, max_bytes: int = ALL) -> list[int]:
    return [e.sequence for e in model_history(number(events), max_bytes=max_bytes)]


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
    assert order(*events, max_bytes=3 * size) == [1, 8, 9, 10]
    assert order(*events, max_bytes=0) == [1, 10]


def test_an_older_question_falls_away() -> None:
    events = [event("input_message", turn="t0"), event("agent_output"), event("input_message")]
    assert order(*events, max_bytes=0) == [3]


KINDS = st.sampled_from(
    ["input_message", "thinking", "agent_output", "custom", "artifact_upload", "tool_input"]
)


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
    history = model_history(events, max_bytes=budget)
    everything = model_history(events, max_bytes=ALL)
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
            assert e.WhichOneof("payload") in ("thinking", "agent_output")
    # What others said keeps its order, and so do the model's own words. They may pass each other:
    # what lay in between a step's events comes after them.
    words = [e for e in everything if e.WhichOneof("payload") in ("thinking", "agent_output")]
    others = [e for e in everything if call_id(e) is None and e not in words]
    for kind in (words, others):
        assert [e.sequence for e in kind] == sorted(e.sequence for e in kind)
    # A budget takes away from the old end only, but for the question.
    kept = {e.sequence for e in history}
    flags = [e.sequence in kept for e in everything if e.WhichOneof("payload") != "input_message"]
    assert flags == sorted(flags)
    if everything:
        assert everything[-1].sequence in kept
