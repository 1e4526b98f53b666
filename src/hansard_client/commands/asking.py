"""Asking whoever sits at the terminal what a turn waits for."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hansard.v1 import event_service_pb2, turn_pb2
from hansard_client.commands.text import as_utf8
from hansard_client.inputs import approve, reject, tool_output

_YES = frozenset({"y", "yes"})
_NO = frozenset({"", "n", "no"})


def ask_for_answers(turn: turn_pb2.Turn) -> Sequence[event_service_pb2.ToolResult]:
    """Return the answers to the calls that the turn waits for, in order.

    Raises EOFError, KeyboardInterrupt when the question is not answered.
    """
    return [_ask(call) for call in turn.pending_calls]


def _ask(call: turn_pb2.PendingCall) -> event_service_pb2.ToolResult:
    call_id = call.tool_call_id
    if call.kind == turn_pb2.PENDING_CALL_KIND_APPROVAL:
        fixed = call.argument_override_json
        with_these = f", with {as_utf8(fixed)}" if fixed else ""
        said = as_utf8(input(f"May {call_id} run{with_these}? [y/N, or why not] ")).strip()
        if said.lower() in _YES:
            return approve(call_id)
        return reject(call_id, "" if said.lower() in _NO else said)
    while True:
        said = as_utf8(input(f"Result of {call_id} as JSON (nothing: reject): ")).strip()
        if not said:
            return reject(call_id)
        try:
            json.loads(said)
        except (ValueError, RecursionError):
            print("That is not JSON.")  # noqa: T201 - an answer to what was typed
        else:
            return tool_output(call_id, said)
