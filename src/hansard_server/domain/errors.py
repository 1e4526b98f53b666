"""Errors of the domain: one exception for each reason of the contract (proto `errors.proto`)."""

from __future__ import annotations

from typing import ClassVar, Self

from hansard_server.domain.values import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaUse:
    """A quota that is used up.

    Attributes:
        name: the setting that it is.
        subject: whose it is, such as `session:<uid>` or `key:<id>`.
        limit: how much there may be.
        used: how much there is.
    """

    name: str
    subject: str
    limit: int
    used: int

    @classmethod
    def of_session(cls, uid: str, name: str, *, limit: int, used: int) -> Self:
        """Return the quota of a session."""
        return cls(name=name, subject=f"session:{uid}", limit=limit, used=used)


class DomainError(Exception):
    """A call can't be done; `reason` is the contract's name for why.

    Attributes:
        message: for people; never holds a payload, a path or a database's words.
        violations: the fields that are wrong, with their paths in the request.
        metadata: facts for programs, such as `last_sequence`.
        retry_after_s: when the same call may succeed, in seconds; None: no such promise.
        quota: what is used up, and whose it is, for quota errors.
    """

    reason: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        violations: tuple[FieldViolation, ...] = (),
        metadata: dict[str, str] | None = None,
        retry_after_s: float | None = None,
        quota: QuotaUse | None = None,
    ) -> None:
        """Make the error; see the class for the arguments."""
        super().__init__(message)
        self.message = message
        self.violations = violations
        self.metadata = metadata or {}
        self.retry_after_s = retry_after_s
        self.quota = quota

    @classmethod
    def of_field(cls, field: str, description: str) -> Self:
        """Return the error for one field of the request."""
        return cls(f"{field}: {description}", violations=(FieldViolation(field, description),))

    def with_metadata(self, **metadata: str) -> Self:
        """Add facts for programs, and return the error."""
        self.metadata.update(metadata)
        return self


class InvalidRequest(DomainError):
    """A field breaks a rule of the contract."""

    reason = "INVALID_REQUEST"


class InvalidMetadata(DomainError):
    """A free-form object is too large, too deep, or holds a number that would be rounded."""

    reason = "INVALID_METADATA"


class InvalidMessageContent(DomainError):
    """The content of an input or a draft is not acceptable."""

    reason = "INVALID_MESSAGE_CONTENT"


class InvalidPageToken(DomainError):
    """The page token is forged, or belongs to another query or tenant."""

    reason = "INVALID_PAGE_TOKEN"


class ChecksumMismatch(DomainError):
    """The bytes have another size or SHA-256 than their header said."""

    reason = "CHECKSUM_MISMATCH"


class Unauthorized(DomainError):
    """There are no valid credentials."""

    reason = "UNAUTHORIZED"


class Forbidden(DomainError):
    """The key's role does not allow the call."""

    reason = "FORBIDDEN"


class AgentNotFound(DomainError):
    """No such agent in the tenant."""

    reason = "AGENT_NOT_FOUND"


class SessionNotFound(DomainError):
    """No such session, or another incarnation of it."""

    reason = "SESSION_NOT_FOUND"


class EventNotFound(DomainError):
    """No such event in the session."""

    reason = "EVENT_NOT_FOUND"


class TurnNotFound(DomainError):
    """No such turn in the session."""

    reason = "TURN_NOT_FOUND"


class ArtifactNotFound(DomainError):
    """No such artifact in the session."""

    reason = "ARTIFACT_NOT_FOUND"


class CorpusNotFound(DomainError):
    """No such corpus in the tenant."""

    reason = "CORPUS_NOT_FOUND"


class DocumentNotFound(DomainError):
    """No such document in the corpus."""

    reason = "DOCUMENT_NOT_FOUND"


class ApiKeyNotFound(DomainError):
    """No such API key in the tenant, as far as the caller sees."""

    reason = "API_KEY_NOT_FOUND"


class AgentAlreadyExists(DomainError):
    """The agent's key is taken."""

    reason = "AGENT_ALREADY_EXISTS"


class SessionAlreadyExists(DomainError):
    """The session's key is taken."""

    reason = "SESSION_ALREADY_EXISTS"


class EventAlreadyExists(DomainError):
    """The event's id, or its call's id, is taken by other content."""

    reason = "EVENT_ALREADY_EXISTS"


class CorpusAlreadyExists(DomainError):
    """The corpus' key is taken."""

    reason = "CORPUS_ALREADY_EXISTS"


class SessionBusy(DomainError):
    """A turn of the session is unfinished."""

    reason = "SESSION_BUSY"


class EtagMismatch(DomainError):
    """The resource has changed since the etag was read."""

    reason = "ETAG_MISMATCH"


class SequenceMismatch(DomainError):
    """The session's last sequence is not the expected one."""

    reason = "SEQUENCE_MISMATCH"


class RequestIdReused(DomainError):
    """The request_id was used for another content."""

    reason = "REQUEST_ID_REUSED"


class AgentDisabled(DomainError):
    """The agent is not enabled."""

    reason = "AGENT_DISABLED"


class SessionDisabled(DomainError):
    """The session is not enabled."""

    reason = "SESSION_DISABLED"


class InvalidAgentConfiguration(DomainError):
    """The agent's parts don't fit together."""

    reason = "INVALID_AGENT_CONFIGURATION"


class ToolCallNotPending(DomainError):
    """A tool output names a call that is not open."""

    reason = "TOOL_CALL_NOT_PENDING"


class CursorOutOfRange(DomainError):
    """The cursor is ahead of the session."""

    reason = "CURSOR_OUT_OF_RANGE"


class RateLimitExceeded(DomainError):
    """More calls than may be made, or than the server can serve at a time."""

    reason = "RATE_LIMIT_EXCEEDED"


class QuotaExceeded(DomainError):
    """A quota is used up."""

    reason = "QUOTA_EXCEEDED"


class QueueFull(DomainError):
    """As many inputs as may wait wait already."""

    reason = "QUEUE_FULL"


class PayloadTooLarge(DomainError):
    """The message, event or file is larger than the server takes."""

    reason = "PAYLOAD_TOO_LARGE"


class AgentProcessingFailed(DomainError):
    """The agent failed while it worked on a turn."""

    reason = "AGENT_PROCESSING_FAILED"


class ModelUnavailable(DomainError):
    """The model is not known, or did not answer."""

    reason = "MODEL_UNAVAILABLE"


class ServerShuttingDown(DomainError):
    """The server is stopping."""

    reason = "SERVER_SHUTTING_DOWN"


class StreamStalled(DomainError):
    """The client of a stream has stopped reading."""

    reason = "STREAM_STALLED"


class StoreUnavailable(DomainError):
    """The database or the artifact store does not answer."""

    reason = "STORE_UNAVAILABLE"


class Unimplemented(DomainError):
    """This server does not serve the call yet."""

    reason = "UNIMPLEMENTED"


class Internal(DomainError):
    """A fault of the server."""

    reason = "INTERNAL"
