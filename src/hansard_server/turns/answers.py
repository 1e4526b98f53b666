"""Answers to the calls that a turn waits for: what callers send as tool_results, for the store."""

from __future__ import annotations

from functools import partial

from hansard.v1 import event_pb2, event_service_pb2
from hansard_server.agents.json_text import NotJson, check_json, dump_json
from hansard_server.domain.errors import (
    InvalidMessageContent,
    InvalidRequest,
    PayloadTooLarge,
)
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import OpenCall
from hansard_server.repository.commands import AnswerKind, CallAnswer
from hansard_server.turns.payloads import close_call, make_output

_KINDS = {
    "output": AnswerKind.OUTPUT,
    "approve": AnswerKind.APPROVE,
    "reject": AnswerKind.REJECT,
}
_NAMES = OpenCall("", "x" * 64, "x" * 64)
"""The longest names that an output may have to carry."""


def make_answers(results: event_service_pb2.ToolResults, limits: Limits) -> tuple[CallAnswer, ...]:
    """Return the answers for the store.

    Raises InvalidRequest for a call that is named twice, InvalidMessageContent for an output that
    is no JSON, PayloadTooLarge.
    """
    answers: dict[str, CallAnswer] = {}
    for index, result in enumerate(results.results):
        path = f"tool_results.results[{index}]"
        if result.tool_call_id in answers:
            raise InvalidRequest.of_field(
                f"{path}.tool_call_id", f"{result.tool_call_id} is answered twice"
            )
        answers[result.tool_call_id] = _answer(result, path, limits)
    return tuple(answers.values())


def _answer(result: event_service_pb2.ToolResult, path: str, limits: Limits) -> CallAnswer:
    kind = _KINDS[result.WhichOneof("answer") or ""]
    close = close_call
    if kind is AnswerKind.OUTPUT:
        output = result.output
        _check_output(output.tool_output_json, f"{path}.output.tool_output_json", limits)
        outcome = (
            event_pb2.TOOL_OUTCOME_FAILED if output.error else event_pb2.TOOL_OUTCOME_COMPLETED
        )
        close = partial(make_output, output_json=output.tool_output_json, outcome=outcome)
    elif kind is AnswerKind.REJECT:
        close = partial(
            make_output,
            output_json=_rejection(result.reject.reason),
            outcome=event_pb2.TOOL_OUTCOME_REJECTED,
        )
    return CallAnswer(tool_call_id=result.tool_call_id, kind=kind, close=close)


def _rejection(reason: str) -> str:
    said = {"error": "the call was rejected"}
    return dump_json(said | {"reason": reason} if reason else said)


def _check_output(text: str, path: str, limits: Limits) -> None:
    event = make_output(_NAMES, text, event_pb2.TOOL_OUTCOME_COMPLETED)
    if len(event.payload) > limits.event_max_bytes:
        raise PayloadTooLarge.of_field(
            path,
            f"the event would be {len(event.payload)} bytes, and may be {limits.event_max_bytes}",
        )
    try:
        check_json(text)
    except NotJson as error:
        raise InvalidMessageContent.of_field(path, str(error)) from None
