"""Calls that somebody has to be asked about: the step's others run, then the turn waits."""

from __future__ import annotations

from collections.abc import Sequence

from hansard_server.agents.api import TurnRecorder
from hansard_server.agents.calls import RecordedCall, ToolRunner
from hansard_server.domain.records import PendingState


async def run_calls(
    calls: Sequence[RecordedCall], runner: ToolRunner, recorder: TurnRecorder
) -> bool:
    """Run the calls that need nobody, or that were approved; return whether the turn goes on.

    If not, it waits for somebody to answer the other calls. Raises what ToolRunner.run does.
    """
    asked = [awaited for call in calls if (awaited := runner.awaits(call)) is not None]
    ids = {awaited.tool_call_id for awaited in asked}
    mine = [call for call in calls if call.tool_call_id not in ids]
    approved = [
        call.tool_call_id
        for call in mine
        if call.asked is not None and call.asked.state is PendingState.APPROVED
    ]
    if approved:
        await recorder.begin(approved)
    await runner.run(mine, recorder)
    if asked:
        recorder.require_action(asked)
    return not asked
