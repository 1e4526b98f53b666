"""History: which of a session's events a model gets, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hansard.v1 import event_pb2
from hansard_server.agents.tokens import estimate_event
from hansard_server.domain.values import dataclass

Unit = tuple[event_pb2.Event, ...]
"""Events that the model gets together or not at all."""
Count = Callable[[event_pb2.Event], int]
"""Returns how many tokens an event has."""

# What a model writes in one answer; only these may stand between the tool_inputs of a step.
_WRITTEN_BY_MODEL = frozenset(
    {"thinking", "agent_output", "structured_output", "image_read", "tool_input"}
)
# Told to people and programs: no model makes anything of them.
_NOT_FOR_MODELS = frozenset({"custom", "context_limit_exceeded"})
_SAID_TO_MODEL = frozenset({"input_message", "compaction", "artifact_upload"})


@dataclass(frozen=True, slots=True)
class History:
    """What a model gets.

    Attributes:
        events: in the order in which it gets them.
        tokens: how many they have together.
        all_tokens: how many there would have been if nothing had been left out.
        left_out: whether something was.
    """

    events: tuple[event_pb2.Event, ...]
    tokens: int
    all_tokens: int
    left_out: bool


def model_history(
    events: Sequence[event_pb2.Event],
    *,
    max_tokens: float | None = None,
    count: Count = estimate_event,
) -> History:
    """Return what the model gets of the session's events, which come in sequence order.

    Sequence order holds, with two exceptions. The tool_outputs of a step directly follow its
    tool_inputs, and what lay in between comes after them. A compaction comes before all events that
    are older, since it says what was said before them. Left out are hidden and deleted events,
    those that are not for models, and halves of tool calls, which no provider accepts.

    Of the rest the newest are kept that have `max_tokens` together at most, compactions before
    other events; a step with tools is kept or left out as a whole. The newest unit and the newest
    input_message are kept whatever their size. Where something was left out, what is kept begins
    with something that the model was told.
    """
    units = list(model_units(events))
    sizes = [sum(map(count, unit)) for unit in units]
    kept = _choose(units, sizes, max_tokens)
    chosen = [units[index] for index in kept]
    return History(
        events=tuple(event for unit in chosen for event in unit),
        tokens=sum(sizes[index] for index in kept),
        all_tokens=sum(sizes),
        left_out=len(kept) < len(units),
    )


def model_units(events: Sequence[event_pb2.Event]) -> Iterator[Unit]:
    """Yield what models may see of the events, in the order of `model_history`."""
    units = list(_units(_complete(events)))
    yield from (unit for unit in units if is_compaction(unit))
    yield from (unit for unit in units if not is_compaction(unit))


def is_compaction(unit: Unit) -> bool:
    """Tell whether the unit is a summary of others."""
    return unit[0].HasField("compaction")


def is_input(unit: Unit) -> bool:
    """Tell whether the unit is an input_message."""
    return unit[0].HasField("input_message")


def _choose(units: Sequence[Unit], sizes: Sequence[int], max_tokens: float | None) -> list[int]:
    """Return which units are kept, by their places."""
    if max_tokens is None or sum(sizes) <= max_tokens:
        return list(range(len(units)))
    last = len(units) - 1
    newest_input = max((i for i, unit in enumerate(units) if is_input(unit)), default=-1)
    # A summary stands for all that was said before: the newest one goes first.
    summaries = [i for i, unit in enumerate(units) if is_compaction(unit)][::-1]
    kept = {last, *([newest_input] if newest_input >= 0 else [])}
    room = max_tokens - sum(sizes[index] for index in kept)
    for index in (*summaries, *range(last - 1, len(summaries) - 1, -1)):
        if index in kept:
            continue
        if sizes[index] > room:
            if index < len(summaries):
                continue
            break
        kept.add(index)
        room -= sizes[index]
    # What begins in the middle of an answer would look as if the model had begun by itself.
    for index in sorted(kept - {last}):
        if units[index][0].WhichOneof("payload") in _SAID_TO_MODEL:
            break
        kept.discard(index)
    return sorted(kept)


def _complete(events: Sequence[event_pb2.Event]) -> list[event_pb2.Event]:
    """Return the visible events that make sense alone or have their other half."""
    visible = [event for event in events if _visible(event)]
    called: set[str] = set()
    answered: set[str] = set()
    for event in visible:
        if event.HasField("tool_input"):
            called.add(event.tool_input.tool_call_id)
        elif event.HasField("tool_output") and event.tool_output.tool_call_id in called:
            answered.add(event.tool_output.tool_call_id)
    return [event for event in visible if (call := call_id(event)) is None or call in answered]


def _visible(event: event_pb2.Event) -> bool:
    kind = event.WhichOneof("payload")
    return (
        not event.hide_reason
        and not event.HasField("deleted_at")
        and kind is not None
        and kind not in _NOT_FOR_MODELS
    )


def call_id(event: event_pb2.Event) -> str | None:
    """Return the tool call that the event is half of; None for other events."""
    if event.HasField("tool_input"):
        return event.tool_input.tool_call_id
    if event.HasField("tool_output"):
        return event.tool_output.tool_call_id
    return None


def _units(events: Sequence[event_pb2.Event]) -> Iterator[Unit]:
    output_at = {
        event.tool_output.tool_call_id: index
        for index, event in enumerate(events)
        if event.HasField("tool_output")
    }
    taken: set[int] = set()
    for index, event in enumerate(events):
        if index in taken:
            continue
        if not event.HasField("tool_input"):
            yield (event,)
            continue
        step = _step(events, index, output_at)
        taken.update(step)
        yield tuple(events[member] for member in step)


def _step(
    events: Sequence[event_pb2.Event], first: int, output_at: dict[str, int]
) -> tuple[int, ...]:
    """Return where the step that begins with the tool_input `first` has its events: the model's
    own up to its last tool_input, then the outputs.
    """
    turn = events[first].turn_id
    end = output_at[events[first].tool_input.tool_call_id]
    answer, answer_whole, outputs = [first], 1, [end]
    index = first + 1
    while index < end:
        event = events[index]
        if event.turn_id not in ("", turn):
            break
        if event.turn_id == turn and event.WhichOneof("payload") in _WRITTEN_BY_MODEL:
            answer.append(index)
            if event.HasField("tool_input"):
                answer_whole = len(answer)
                outputs.append(output_at[event.tool_input.tool_call_id])
                end = min(end, outputs[-1])
        index += 1
    return (*answer[:answer_whole], *sorted(outputs))
