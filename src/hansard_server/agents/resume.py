"""Resuming: how far a turn is that another process has begun."""

from __future__ import annotations

from collections.abc import Sequence

from hansard.v1 import event_pb2
from hansard_server.agents.api import TurnRecorder
from hansard_server.agents.awaited import run_calls
from hansard_server.agents.calls import RecordedCall, ToolRunner
from hansard_server.domain.records import PendingState


def turn_events(events: Sequence[event_pb2.Event]) -> list[event_pb2.Event]:
    """Return the running turn's events: one turn runs at a time, so the last to have written."""
    turn_id = next((event.turn_id for event in reversed(events) if event.turn_id), None)
    return [event for event in events if event.turn_id == turn_id] if turn_id else []


def count_steps(events: Sequence[event_pb2.Event]) -> int:
    """Return how many model calls of the running turn have ended with their tools run."""
    steps = 0
    in_calls = False
    for event in turn_events(events):
        if event.HasField("tool_input"):
            steps += not in_calls
            in_calls = True
        elif event.HasField("tool_output"):
            in_calls = False
    return steps


async def close_open_calls(
    events: Sequence[event_pb2.Event], runner: ToolRunner, recorder: TurnRecorder
) -> bool | None:
    """Give every call that the turn has left open its one output.

    A call that was approved runs now, and one that somebody has to be asked about is asked for. Of
    the others, which its former owner ran, those of `rerun_safe` tools run again under their ids;
    any other may have had its effect, so it is closed as INTERRUPTED and the model decides. Returns
    whether there was one; None: the turn has to wait for somebody.
    """
    mine = turn_events(events)
    answered = {event.tool_output.tool_call_id for event in mine if event.HasField("tool_output")}
    still_open = [
        event.tool_input
        for event in mine
        if event.HasField("tool_input") and event.tool_input.tool_call_id not in answered
    ]
    again: list[RecordedCall] = []
    for call in still_open:
        recorded = RecordedCall(
            tool_call_id=call.tool_call_id,
            name=call.tool_configuration_name,
            tool_name=call.tool_name,
            arguments_json=call.tool_input_json,
            asked=recorder.pending.get(call.tool_call_id),
        )
        if _may_run(recorded, runner):
            again.append(recorded)
        else:
            recorder.add(
                recorded.to_error(
                    "The server was interrupted while the tool ran; whether it had its effect is "
                    "not known.",
                    event_pb2.TOOL_OUTCOME_INTERRUPTED,
                )
            )
    if still_open:
        await recorder.flush()
    if again and not await run_calls(again, runner, recorder):
        return None
    return bool(still_open)


def _may_run(call: RecordedCall, runner: ToolRunner) -> bool:
    """Return whether a call that is open can be run, or asked for, without doing a thing twice."""
    if call.asked is not None and call.asked.state is not PendingState.BEGUN:
        return True
    tool = runner.tools.get(call.name)
    never_ran = call.asked is None and runner.awaits(call) is not None
    return never_ran or (tool is not None and tool.rerun_safe)
