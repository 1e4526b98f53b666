"""Errors as HTTP answers, from the statuses of gRPC and from what is found wrong here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from hansard.v1 import errors_pb2, options_pb2
from hansard_gateway.naming import http_path

_DETAILS_KEY: Final = "grpc-status-details-bin"
_REASON_PREFIX: Final = "ERROR_REASON_"
_SHUTTING_DOWN: Final = "server_shutting_down"

# For statuses that grpc itself makes, which carry no reason.
_BY_CODE: Final = {
    grpc.StatusCode.UNIMPLEMENTED: "unimplemented",
    grpc.StatusCode.UNAVAILABLE: "server_unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline_exceeded",
    grpc.StatusCode.UNAUTHENTICATED: "unauthorized",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "payload_too_large",
}
_OWN_STATUSES: Final = {
    "server_unavailable": 503,
    "deadline_exceeded": 504,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "headers_too_large": 431,
}


def _statuses() -> dict[str, int]:
    statuses = dict(_OWN_STATUSES)
    for value in errors_pb2.ErrorReason.DESCRIPTOR.values:
        status = value.GetOptions().Extensions[options_pb2.error].http_status
        if status:
            statuses[value.name.removeprefix(_REASON_PREFIX).lower()] = status
    return statuses


STATUSES: Final = _statuses()
"""The HTTP status of each code: the contract's reasons in lower case, and what HTTP adds."""


@dataclass(slots=True)
class HttpError(Exception):
    """An answer that is an error.

    Attributes:
        code: what programs branch on; a key of STATUSES.
        messages: the same in words.
        field_errors: what is wrong with which field.
        facts: more members of the body, such as the sequence to resume from.
        retry_after_s: when to come back, in seconds.
        headers: more headers.
    """

    code: str
    messages: list[str]
    field_errors: dict[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: float | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUSES.get(self.code, 500)

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the body; `request_id` also stands in the log."""
        body: dict[str, Any] = {"code": self.code, "messages": self.messages}
        if self.field_errors or self.status == 400:  # noqa: PLR2004 - the documented shape of 400
            body["field_errors"] = self.field_errors
        return {**body, **self.facts, "request_id": request_id}

    def all_headers(self) -> dict[str, str]:
        """Return the headers, when to come back and how to show who one is among them."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.code == "unauthorized":
            headers["www-authenticate"] = "Bearer"
        return headers


def invalid(path: str, problem: str, *, code: str = "invalid_request") -> HttpError:
    """Return the error for a field that is wrong."""
    words = f"{path}: {problem}" if path else problem
    return HttpError(code, [words], {path: problem} if path else {})


def draining(**facts: Any) -> HttpError:
    """Return the error that ends what a stopping gateway still serves."""
    return HttpError(
        _SHUTTING_DOWN, ["the server is stopping; come back"], facts=facts, retry_after_s=1.0
    )


class Failed(Protocol):
    """A call that failed: grpc's own error, or one that looks like it."""

    def code(self) -> grpc.StatusCode:
        """Return the status."""

    def details(self) -> str | None:
        """Return the status in words."""

    def trailing_metadata(self) -> Any:
        """Return the metadata that came with the status."""


def from_grpc(error: Failed, request: Any, body: str = "") -> HttpError:
    """Return the error as HTTP says it.

    `request` is the descriptor of the request, `body` the field that the HTTP body was ("" or "*":
    the whole): the fields are named as the client knows them.
    """
    info, bad, retry = _details(error)
    code = info.reason.lower() or _BY_CODE.get(error.code(), "internal")
    fields: dict[str, str] = {}
    for violation in bad.field_violations:
        path = http_path(request, violation.field)
        fields[path.removeprefix(f"{body}.") if body else path] = violation.description
    messages = [f"{path}: {words}" if path else words for path, words in fields.items()]
    retry_after_s: float | None = None
    if retry is not None:
        retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    elif STATUSES.get(code) in {429, 503}:
        retry_after_s = 1.0
    if code == "internal" and not info.reason:
        messages = ["the server failed"]
    elif not info.reason:
        messages = [_OWN_WORDS.get(code, code.replace("_", " "))]
    return HttpError(
        code if code in STATUSES else "internal",
        messages or [error.details() or code],
        {path: words for path, words in fields.items() if path},
        facts={k: int(v) for k, v in info.metadata.items() if k.endswith("sequence")},
        retry_after_s=retry_after_s,
    )


_OWN_WORDS: Final = {
    "server_unavailable": "the server does not answer",
    "deadline_exceeded": "the server did not answer in time",
    "unimplemented": "this server does not serve it",
    "payload_too_large": "the request or the answer is too large",
    "unauthorized": "the credentials are missing or not valid",
}


def reason_of(error: Failed) -> str:
    """Return the contract's reason for the failure, or ""."""
    return _details(error)[0].reason


def _details(
    error: Failed,
) -> tuple[
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo | None,
]:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    told = False
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except DecodeError:
            continue
        for detail in status.details:
            # Each takes only what is of its own type.
            detail.Unpack(info)
            detail.Unpack(bad)
            told = detail.Unpack(retry) or told
    return info, bad, retry if told else None
