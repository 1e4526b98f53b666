"""What went wrong, in one line for people."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from hansard_client.text import one_line

_DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "hansard"
_LINE_MAX_CHARACTERS = 1_000
# Codes with which a connection may break; with a reason of Hansard's they are answers.
_BREAKS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


class Mistake(Exception):  # noqa: N818 - mostly not the program's
    """Something that the person who called has to know: one line."""


class StreamCut(Exception):  # noqa: N818 - reads as what happened
    """A stream ended before its last item."""


def reason_of(error: grpc.RpcError) -> str:
    """Return the contract's reason (SESSION_BUSY); empty when Hansard gave none."""
    info, _ = _details(error)
    return info.reason if info.domain == _DOMAIN else ""


def may_pass(error: grpc.RpcError) -> bool:
    """Tell whether the connection broke or the server is going away: the same call may succeed."""
    call = _call(error)
    code = call.code() if call else None
    return code is grpc.StatusCode.UNAVAILABLE or (code in _BREAKS and not reason_of(error))


def describe(error: grpc.RpcError, target: str) -> str:
    """Return what the failed call tells, in one line."""
    call = _call(error)
    if call is None:
        return one_line(str(error), _LINE_MAX_CHARACTERS)
    info, bad = _details(error)
    code, words = call.code(), call.details() or ""
    if info.domain == _DOMAIN:
        fields = [
            f"{violation.field}: {violation.description}"
            for violation in bad.field_violations
            if violation.description not in words
        ]
        return one_line(f"{info.reason}: {'; '.join([words, *fields])}", _LINE_MAX_CHARACTERS)
    if code is grpc.StatusCode.UNAVAILABLE:
        return one_line(
            f"no Hansard answers at {target} (`hansard serve` starts one): {words}",
            _LINE_MAX_CHARACTERS,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{one_line(target)} did not answer in time (--timeout)"
    return one_line(f"{code.name}: {words}", _LINE_MAX_CHARACTERS)


def _call(error: grpc.RpcError) -> grpc.Call | None:
    """Return the call that failed, which the error itself is; None for an error without one."""
    failed: Any = error
    return failed if isinstance(failed, grpc.Call) else None


def _details(
    error: grpc.RpcError,
) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    call = _call(error)
    metadata = call.trailing_metadata() if call else None
    for key, value in metadata or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                # Each takes only what is of its own type.
                detail.Unpack(info)
                detail.Unpack(bad)
    return info, bad
