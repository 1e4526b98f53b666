"""Errors of the domain as statuses of gRPC, with google.rpc details."""

from __future__ import annotations

from itertools import accumulate

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from hansard.v1 import errors_pb2, options_pb2
from hansard_server.domain.errors import DomainError, FieldViolation
from hansard_server.domain.values import dataclass

DOMAIN = "hansard"
DETAILS_KEY = "grpc-status-details-bin"
_REASON_PREFIX = "ERROR_REASON_"
# Details travel in trailers, and clients take 8 KiB of those: base64 makes 4 KiB some 5.5.
VIOLATIONS_MAX = 20
DETAILS_MAX_BYTES = 4_096
_TEXT_MAX_CHARACTERS = 200
_MESSAGE_MAX_CHARACTERS = 400
_RETRY_DEFAULT_S = 1.0


def _read_codes() -> dict[str, grpc.StatusCode]:
    by_number = {code.value[0]: code for code in grpc.StatusCode}
    return {
        value.name.removeprefix(_REASON_PREFIX): by_number[
            value.GetOptions().Extensions[options_pb2.error].grpc_code
        ]
        for value in errors_pb2.ErrorReason.DESCRIPTOR.values
        if value.number
    }


CODES = _read_codes()
"""The code of each reason, as the contract's enum says it."""


@dataclass(frozen=True, slots=True)
class WireError:
    """An error as it leaves the server; `details` is a serialized google.rpc.Status."""

    code: grpc.StatusCode
    message: str
    details: bytes


def to_wire(error: DomainError) -> WireError:
    """Return the error as gRPC carries it."""
    code = CODES[error.reason]
    message = _cut(error.message, _MESSAGE_MAX_CHARACTERS)
    status = to_status(error)
    return WireError(code, message, status.SerializeToString())


def to_status(error: DomainError) -> status_pb2.Status:
    """Return the error as a google.rpc.Status, its details within 4 KiB."""
    code = CODES[error.reason]
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={key: _cut(value, _TEXT_MAX_CHARACTERS) for key, value in error.metadata.items()},
    )
    if len(error.violations) > 1 and "violations" not in error.metadata:
        info.metadata["violations"] = str(len(error.violations))
    details: list[Message] = [info]
    retry_after_s = error.retry_after_s
    if retry_after_s is None and code is grpc.StatusCode.UNAVAILABLE:
        retry_after_s = _RETRY_DEFAULT_S
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_after_s * 1_000))
        details.append(retry)
    if error.quota is not None:
        quota = error.quota
        info.metadata.update(quota=quota.name, limit=str(quota.limit), used=str(quota.used))
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=quota.subject,
            description=_cut(error.message, _TEXT_MAX_CHARACTERS),
            quota_id=quota.name,
            quota_value=quota.limit,
        )
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    status = status_pb2.Status(
        code=code.value[0],
        message=_cut(error.message, _MESSAGE_MAX_CHARACTERS),
        details=[_pack(detail) for detail in details],
    )
    if error.violations:
        room = DETAILS_MAX_BYTES - status.ByteSize()
        status.details.append(_pack(_bad_request(error.violations, room)))
    return status


def _bad_request(violations: tuple[FieldViolation, ...], room: int) -> error_details_pb2.BadRequest:
    shown = [
        error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, _TEXT_MAX_CHARACTERS),
            description=_cut(violation.description, _TEXT_MAX_CHARACTERS),
        )
        for violation in violations[:VIOLATIONS_MAX]
    ]
    # The name of the type, and lengths, take about a hundred bytes.
    sizes = accumulate((violation.ByteSize() + 4 for violation in shown), initial=100)
    fitting = sum(size <= room for size in sizes) - 1
    return error_details_pb2.BadRequest(field_violations=shown[: max(1, fitting)])


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
