"""What a call can fail with: one exception for each reason of the contract, grouped by kind.

`errors.proto` says of every reason what causes it and what a client does. Programs catch a reason
(`SessionBusy`), a kind (`NotFound`) or everything (`HansardError`), and never look at the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import grpc
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "hansard"
_DETAILS_KEY = "grpc-status-details-bin"
_CALL_ID_KEY = "x-request-id"
_NANOS: Final = 1e9


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that breaks a rule: its path, and what is wrong."""

    field: str
    description: str


class HansardError(Exception):
    """A call failed.

    Attributes:
        message: what went wrong, for people.
        code: the status of gRPC.
        reason: the contract's reason (`SESSION_BUSY`); empty when Hansard gave none, because the
            call never got there or something on the way answered.
        field_violations: the fields that are wrong, for invalid input.
        retry_after_s: when the server says to try again; None when it does not.
        metadata: facts that go with the reason (`last_sequence` of a SequenceMismatch).
        call_id: the id of the call in the server's log; empty when no server answered.
        address: the server that was called; empty when none was.
        repeated: an attempt before this one may have taken effect.
    """

    by_reason: ClassVar[dict[str, type[HansardError]]] = {}
    by_code: ClassVar[dict[grpc.StatusCode, type[HansardError]]] = {}
    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = ""

    def __init_subclass__(
        cls, *, reason: str = "", code: grpc.StatusCode | None = None, **more: Any
    ) -> None:
        super().__init_subclass__(**more)
        if code is not None:
            cls.default_code = code
            HansardError.by_code[code] = cls
        if reason:
            cls.default_reason = reason
            HansardError.by_reason[reason] = cls

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        field_violations: Iterable[FieldViolation] = (),
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        call_id: str = "",
    ) -> None:
        """Say what went wrong; code and reason are the class's own unless they are given."""
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        self.reason = self.default_reason if reason is None else reason
        self.field_violations = tuple(field_violations)
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})
        self.call_id = call_id
        self.address = ""
        self.repeated = False

    def __str__(self) -> str:
        fields = [
            f"{violation.field}: {violation.description}"
            for violation in self.field_violations
            if violation.description not in self.message
        ]
        return f"{self.reason or self.code.name}: {'; '.join([self.message, *fields])}"


# By kind.


class InvalidArgument(HansardError, code=grpc.StatusCode.INVALID_ARGUMENT):
    """The request is not acceptable; the same one never will be."""


class Unauthenticated(HansardError, code=grpc.StatusCode.UNAUTHENTICATED):
    """No valid credentials."""


class PermissionDenied(HansardError, code=grpc.StatusCode.PERMISSION_DENIED):
    """The credentials do not allow it."""


class NotFound(HansardError, code=grpc.StatusCode.NOT_FOUND):
    """What the request names is not there."""


class AlreadyExists(HansardError, code=grpc.StatusCode.ALREADY_EXISTS):
    """What the request makes is there already."""


class Conflict(HansardError, code=grpc.StatusCode.ABORTED):
    """The state of things is not the one that the request asks for."""


class FailedPrecondition(HansardError, code=grpc.StatusCode.FAILED_PRECONDITION):
    """Something has to be changed before the request can succeed."""


class OutOfRange(HansardError, code=grpc.StatusCode.OUT_OF_RANGE):
    """A place beyond the end."""


class ResourceExhausted(HansardError, code=grpc.StatusCode.RESOURCE_EXHAUSTED):
    """A limit, a rate or a quota."""


class Unavailable(HansardError, code=grpc.StatusCode.UNAVAILABLE):
    """No server could take the call; it was repeated for as long as the client's patience says."""


class Unimplemented(HansardError, code=grpc.StatusCode.UNIMPLEMENTED, reason="UNIMPLEMENTED"):
    """The server does not serve the call."""


class DeadlineExceeded(HansardError, code=grpc.StatusCode.DEADLINE_EXCEEDED):
    """No answer in time. Whether the call took effect is not known."""


class Internal(HansardError, code=grpc.StatusCode.INTERNAL, reason="INTERNAL"):
    """A fault of the server; the message has an id that is also in its log."""


# By reason. What each means, and what to do, stands in errors.proto.


class InvalidRequest(InvalidArgument, reason="INVALID_REQUEST"):
    """A field breaks a rule of the contract."""


class InvalidMetadata(InvalidArgument, reason="INVALID_METADATA"):
    """Metadata is too large, too deep, or holds a number that would be rounded."""


class InvalidMessageContent(InvalidArgument, reason="INVALID_MESSAGE_CONTENT"):
    """The content of an input or of a draft is not acceptable."""


class InvalidPageToken(InvalidArgument, reason="INVALID_PAGE_TOKEN"):
    """The page token belongs to another query."""


class ChecksumMismatch(InvalidArgument, reason="CHECKSUM_MISMATCH"):
    """Bytes on their way, up or down, are not those that were meant."""


class Unauthorized(Unauthenticated, reason="UNAUTHORIZED"):
    """No API key, or one that is unknown, expired or revoked."""


class Forbidden(PermissionDenied, reason="FORBIDDEN"):
    """The key's role does not allow the call."""


class AgentNotFound(NotFound, reason="AGENT_NOT_FOUND"):
    """No such agent."""


class SessionNotFound(NotFound, reason="SESSION_NOT_FOUND"):
    """No such session, or another one under its key than the one that was meant."""


class EventNotFound(NotFound, reason="EVENT_NOT_FOUND"):
    """No such event in the session."""


class TurnNotFound(NotFound, reason="TURN_NOT_FOUND"):
    """No such turn in the session."""


class ArtifactNotFound(NotFound, reason="ARTIFACT_NOT_FOUND"):
    """No such artifact in the session."""


class CorpusNotFound(NotFound, reason="CORPUS_NOT_FOUND"):
    """No such corpus."""


class DocumentNotFound(NotFound, reason="DOCUMENT_NOT_FOUND"):
    """No such document in the corpus."""


class ApiKeyNotFound(NotFound, reason="API_KEY_NOT_FOUND"):
    """No such API key."""


class AgentAlreadyExists(AlreadyExists, reason="AGENT_ALREADY_EXISTS"):
    """An agent has the key."""


class SessionAlreadyExists(AlreadyExists, reason="SESSION_ALREADY_EXISTS"):
    """A session of the agent has the key."""


class EventAlreadyExists(AlreadyExists, reason="EVENT_ALREADY_EXISTS"):
    """The draft's id is taken by other content."""


class CorpusAlreadyExists(AlreadyExists, reason="CORPUS_ALREADY_EXISTS"):
    """A corpus has the key."""


class SessionBusy(Conflict, reason="SESSION_BUSY"):
    """A turn of the session is unfinished, and the call needs an idle session."""


class EtagMismatch(Conflict, reason="ETAG_MISMATCH"):
    """The resource changed after the etag was read."""


class SequenceMismatch(Conflict, reason="SEQUENCE_MISMATCH"):
    """The session's last sequence is not the expected one."""


class RequestIdReused(Conflict, reason="REQUEST_ID_REUSED"):
    """The request id was used for a request with another content."""


class AgentDisabled(FailedPrecondition, reason="AGENT_DISABLED"):
    """The agent's `enabled` is false."""


class SessionDisabled(FailedPrecondition, reason="SESSION_DISABLED"):
    """The session's `enabled` is false."""


class InvalidAgentConfiguration(FailedPrecondition, reason="INVALID_AGENT_CONFIGURATION"):
    """The agent's parts do not fit together."""


class ToolCallNotPending(FailedPrecondition, reason="TOOL_CALL_NOT_PENDING"):
    """The tool call is not open."""


class CursorOutOfRange(OutOfRange, reason="CURSOR_OUT_OF_RANGE"):
    """The cursor is ahead of the session's last sequence."""


class RateLimitExceeded(ResourceExhausted, reason="RATE_LIMIT_EXCEEDED"):
    """More calls than the key or the agent may make."""


class QuotaExceeded(ResourceExhausted, reason="QUOTA_EXCEEDED"):
    """A quota is used up."""


class QueueFull(ResourceExhausted, reason="QUEUE_FULL"):
    """As many inputs as may wait in a session wait already."""


class PayloadTooLarge(ResourceExhausted, reason="PAYLOAD_TOO_LARGE"):
    """The message, event or file is larger than the server takes."""


class AgentProcessingFailed(Internal, reason="AGENT_PROCESSING_FAILED"):
    """The agent failed while it worked on the turn."""


class ModelUnavailable(Unavailable, reason="MODEL_UNAVAILABLE"):
    """The agent's model is not known to the server, or did not answer."""


class ServerShuttingDown(Unavailable, reason="SERVER_SHUTTING_DOWN"):
    """The server is stopping, and no other took the call."""


class StreamStalled(Unavailable, reason="STREAM_STALLED"):
    """The stream was not read for too long."""


class StoreUnavailable(Unavailable, reason="STORE_UNAVAILABLE"):
    """The server's database or artifact store does not answer."""


# Found out by the client.


class Unreachable(Unavailable):
    """No server answered at the addresses that the client knows, or it could not be heard."""


class StreamCut(Unavailable):
    """A stream ended before its last item."""


class ClientClosed(HansardError):
    """The client was closed while the call was under way, or before."""

    default_code = grpc.StatusCode.CANCELLED


def from_call(call: Any, addresses: str) -> HansardError:
    """Return the exception for a failed call of grpc (a grpc.Call, or what grpc.aio raises)."""
    code: grpc.StatusCode = call.code()
    words: str = call.details() or ""
    status, call_id = status_pb2.Status(), ""
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
        elif key == _CALL_ID_KEY and isinstance(value, str):
            call_id = value
    error = _from_details(status, code, words)
    error.call_id = call_id
    if not error.reason and code is grpc.StatusCode.UNAVAILABLE:
        return Unreachable(f"no Hansard answers at {addresses}: {words}")
    return error


def from_status(status: status_pb2.Status) -> HansardError:
    """Return the exception for a status that stands in a resource, as `Turn.error` does."""
    codes = {code.value[0]: code for code in grpc.StatusCode}
    return _from_details(status, codes.get(status.code, grpc.StatusCode.UNKNOWN), status.message)


def _from_details(status: status_pb2.Status, code: grpc.StatusCode, words: str) -> HansardError:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, retry_after_s = error_details_pb2.RetryInfo(), None
    for detail in status.details:
        # Each takes only what is of its own type.
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / _NANOS
    reason = info.reason if info.domain == DOMAIN else ""
    # A later server may know reasons that this client does not: then the code says the kind.
    made = HansardError.by_reason.get(reason) or HansardError.by_code.get(code, HansardError)
    return made(
        words,
        code=code,
        reason=reason,
        field_violations=[FieldViolation(v.field, v.description) for v in bad.field_violations],
        retry_after_s=retry_after_s,
        metadata=info.metadata,
    )
