"""History: which of a session's events a model gets, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hansard.v1 import event_pb2

Unit = tuple[event_pb2.Event, ...]
"""Events that the model gets together or not at all."""

# What a model writes in one answer; only these may stand between the tool_inputs of a step.
_WRITTEN_BY_MODEL = frozenset(
    {"thinking", "agent_output", "structured_output", "image_read", "tool_input"}
)


def model_history(
    events: Sequence[event_pb2.Event], *, max_bytes: int
) -> tuple[event_pb2.Event, ...]:
    """Return what the model gets of the session's events, which come in sequence order.

    Sequence order holds, except that the tool_outputs of a step directly follow its tool_inputs;
    what lay in between comes after them. Left out are hidden and deleted events, custom ones, and
    halves of tool calls, which no provider accepts. Of the rest the newest are kept whose sizes
    together are at most `max_bytes`; a step with tools is kept or left out as a whole. The newest
    unit and the newest input_message are kept whatever their size.
    """
    units = list(_units(_complete(events)))
    newest_input = max((i for i, unit in enumerate(units) if _is_input(unit)), default=-1)
    kept: list[Unit] = []
    room = max_bytes
    full = False
    for index in range(len(units) - 1, -1, -1):
        size = sum(event.ByteSize() for event in units[index])
        full = full or (size > room and bool(kept))
        if not full or index == newest_input:
            kept.append(units[index])
            room -= size
        elif index < newest_input:
            break
    return tuple(event for unit in reversed(kept) for event in unit)


def _is_input(unit: Unit) -> bool:
    return unit[0].WhichOneof("payload") == "input_message"


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
    return (
        not event.hide_reason
        and not event.HasField("deleted_at")
        and event.WhichOneof("payload") not in (None, "custom")
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
