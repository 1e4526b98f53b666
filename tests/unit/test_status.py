"""Reasons: the contract's enum, the domain's exceptions and the statuses say the same."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from hansard.v1 import errors_pb2, options_pb2
from hansard_server.domain import errors
from hansard_server.domain.errors import DomainError, FieldViolation, InvalidRequest
from hansard_server.servicers.status import CODES, DETAILS_MAX_BYTES, to_status, to_wire


def exceptions() -> dict[str, type[DomainError]]:
    """Return the exceptions of the domain by their reasons."""
    found: dict[str, type[DomainError]] = {}
    for thing in vars(errors).values():
        if isinstance(thing, type) and issubclass(thing, DomainError) and thing is not DomainError:
            assert thing.reason not in found
            found[thing.reason] = thing
    return found


def detail(error: DomainError, kind: type[Message]) -> Message | None:
    """Return the status's detail of a kind."""
    for packed in to_status(error).details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


def test_every_reason_has_its_exception_and_the_other_way_round() -> None:
    reasons = {
        value.name.removeprefix("ERROR_REASON_")
        for value in errors_pb2.ErrorReason.DESCRIPTOR.values
        if value.number
    }
    assert set(exceptions()) == reasons


def test_codes_are_those_of_the_contract() -> None:
    for value in errors_pb2.ErrorReason.DESCRIPTOR.values:
        mapping = value.GetOptions().Extensions[options_pb2.error]
        if value.number:
            assert mapping.grpc_code != code_pb2.OK
            code = CODES[value.name.removeprefix("ERROR_REASON_")]
            assert code.name == code_pb2.Code.Name(mapping.grpc_code)


@pytest.mark.parametrize("kind", exceptions().values(), ids=exceptions())
def test_every_error_says_its_reason(kind: type[DomainError]) -> None:
    error = kind("words", metadata={"k": "v"})
    info = detail(error, error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (kind.reason, "hansard", {"k": "v"})
    waits = detail(error, error_details_pb2.RetryInfo) is not None
    assert waits == (CODES[kind.reason].name == "UNAVAILABLE")


def test_quota_is_named() -> None:
    failed = detail(
        error := errors.QuotaExceeded(
            "too many files",
            quota=errors.QuotaUse.of_session("u", "session_artifacts_max_files", limit=3, used=2),
        ),
        error_details_pb2.QuotaFailure,
    )
    assert isinstance(failed, error_details_pb2.QuotaFailure)
    (violation,) = failed.violations
    assert (violation.subject, violation.description) == ("session:u", "too many files")
    assert (violation.quota_id, violation.quota_value) == ("session_artifacts_max_files", 3)
    info = detail(error, error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {
        "quota": "session_artifacts_max_files",
        "limit": "3",
        "used": "2",
    }


@pytest.mark.parametrize("count", [1, 19, 20, 21, 5_000])
@pytest.mark.parametrize("length", [1, 300, 10_000])
@pytest.mark.parametrize("character", ["x", "\N{GRINNING FACE}"])
def test_details_fit_into_what_clients_take(count: int, length: int, character: str) -> None:
    violations = tuple(FieldViolation(character * length, character * length) for _ in range(count))
    error = InvalidRequest(character * length, violations=violations, metadata={"m": "x" * length})
    wire = to_wire(error)
    bad = detail(error, error_details_pb2.BadRequest)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert 1 <= len(bad.field_violations) <= min(20, count)
    assert len(wire.details) <= DETAILS_MAX_BYTES + 1_000
    if length == 1:
        assert len(bad.field_violations) == min(20, count)
        assert len(wire.details) <= DETAILS_MAX_BYTES
