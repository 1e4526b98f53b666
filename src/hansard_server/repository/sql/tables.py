"""Tables: the one schema of both databases, in SQLAlchemy Core. Their indexes: see `indexes`.

Rows of a session hang on (tenant, session_uid); keys are a lookup. Times are whole microseconds.
What changes with every event stands in `session_heads`, a narrow row that has no index but the
expiry's, so that the session row and its indexes rest.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.types import TypeEngine

metadata = MetaData()


class _Fields(TypeDecorator[Any]):
    """JSON as each database keeps it best."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the dialect's own type."""
        if dialect.name != "postgresql":
            return dialect.type_descriptor(JSON())
        # SQLite need not wait for the other's dialect.
        from sqlalchemy.dialects.postgresql import JSONB  # noqa: PLC0415

        return dialect.type_descriptor(JSONB())


def _tenant() -> Column[str]:
    return Column("tenant", String(64), primary_key=True)


def _session_uid() -> Column[str]:
    return Column("session_uid", String(64), primary_key=True)


agents = Table(
    "agents",
    metadata,
    _tenant(),
    Column("uid", String(64), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("configuration", LargeBinary, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("etag", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    # The claim of the request that made the row lives on the row. `first_answer` is the row as it
    # was made, kept from the first update on, and only where there is a claim.
    Column("request_id", String(128)),
    Column("fingerprint", LargeBinary),
    Column("first_answer", LargeBinary),
)

sessions = Table(
    "sessions",
    metadata,
    _tenant(),
    Column("uid", String(64), primary_key=True),
    Column("agent_uid", String(64), nullable=False),
    Column("key", String(64), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("tti_minutes", Integer, nullable=False),
    Column("forked_from", LargeBinary),
    Column("etag", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    Column("purged", Boolean, nullable=False, server_default=text("false")),
    Column("request_id", String(128)),
    Column("fingerprint", LargeBinary),
    Column("first_answer", LargeBinary),
    Column("parent", LargeBinary),
)

session_heads = Table(
    "session_heads",
    metadata,
    _tenant(),
    _session_uid(),
    Column("last_sequence", BigInteger, nullable=False),
    # Of the last event, so that event times never decrease.
    Column("last_event_at", BigInteger, nullable=False),
    # Of the last event or end of a turn; the expiry counts from here.
    Column("last_active_at", BigInteger, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("unfinished_turn_id", String(64)),
    Column("queued_turns", Integer, nullable=False),
    Column("turn_count", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("artifact_files", Integer, nullable=False),
    Column("artifact_bytes", BigInteger, nullable=False),
    # The session's, kept here too: the expiry moves with every event.
    Column("tti_minutes", Integer, nullable=False),
    Column("expire_at", BigInteger),
    Column("deleted", Boolean, nullable=False),
    # How often events were hidden, unhidden or deleted: followers see by it that some were.
    Column("alteration_count", BigInteger, nullable=False, server_default=text("0")),
)

events = Table(
    "events",
    metadata,
    _tenant(),
    _session_uid(),
    Column("sequence", BigInteger, primary_key=True),
    Column("id", String(64), nullable=False),
    Column("type", SmallInteger, nullable=False),
    Column("turn_id", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("hide_reason", SmallInteger, nullable=False),
    Column("deleted_at", BigInteger),
    Column("tool_call_id", String(128)),
    Column("size_bytes", Integer, nullable=False),
    # A serialized Event that holds its payload field alone: put behind an encoded header it is the
    # whole Event.
    Column("payload", LargeBinary, nullable=False),
    # The number of the alteration that changed it last, counted by its session's head.
    Column("alteration", BigInteger),
)

claims = Table(
    "claims",
    metadata,
    _tenant(),
    _session_uid(),
    Column("scope", SmallInteger, primary_key=True),
    Column("request_id", String(128), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    # What the request made: a turn, or events, (id, sequence) each, as JSON.
    Column("turn_id", String(64)),
    Column("events", Text),
)

turns = Table(
    "turns",
    metadata,
    _tenant(),
    _session_uid(),
    Column("id", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("input_event_id", String(64), nullable=False),
    Column("input_type", SmallInteger, nullable=False),
    Column("input", LargeBinary, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("pending_calls", LargeBinary, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("error", LargeBinary, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    # Tool calls without an output yet, as JSON: [[tool_call_id, configuration, tool], …]; those of
    # them that somebody was asked about are in `pending_calls`, as JSON: [[tool_call_id, kind,
    # expiry, overrides, state], …].
    Column("open_calls", Text, nullable=False),
    Column("lease_owner", String(64)),
    Column("lease_until", BigInteger),
    # Of the turn's last event when it last changed hands; no event since means no progress.
    Column("taken_sequence", BigInteger, nullable=False),
    # Of the newest input that was put into the turn while it ran.
    Column("steered_sequence", BigInteger, nullable=False),
    # Goes up whenever the turn changes hands; a write with an old one is refused.
    Column("fence", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
    # Where the owner's peer listener takes calls, host:port; NULL: nowhere.
    Column("lease_address", String(255)),
    # When the first call that the turn waits for runs out of time; NULL: it waits for nobody.
    Column("pending_until", BigInteger),
)


artifacts = Table(
    "artifacts",
    metadata,
    _tenant(),
    _session_uid(),
    Column("id", String(128), primary_key=True),
    Column("filename", Text, nullable=False),
    Column("mime_type", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("description", Text, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("ttl_days", Integer),
    Column("source", SmallInteger, nullable=False),
    Column("blob_key", String(128), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("expire_at", BigInteger),
)

# Bytes in the object store. `shared_as` is the SHA-256, in hexadecimal, under which new artifacts
# refer to them; NULL: none does any more. `unreferenced_since`: the sweep's mark.
blobs = Table(
    "blobs",
    metadata,
    _tenant(),
    Column("key", String(128), primary_key=True),
    Column("shared_as", String(64)),
    Column("unreferenced_since", BigInteger),
    Column("created_at", BigInteger, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    _tenant(),
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    # The secret is random, 260 bits: a fast hash keeps it as well as a slow one would.
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("last_used_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("request_id", String(128)),
    Column("fingerprint", LargeBinary),
)

roles = Table(
    "roles",
    metadata,
    _tenant(),
    Column("api_key_id", String(64), primary_key=True),
    # Empty for a role on the whole tenant.
    Column("agent_uid", String(64), primary_key=True),
    Column("role", SmallInteger, nullable=False),
)

# Of the service itself, shared by all its processes.
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

# Sessions that are being copied from others. Their events, turns and artifacts hang on the uid that
# the session will have; when it is whole, it gets its rows in `sessions` and `session_heads`, and
# the one here goes.
forks = Table(
    "forks",
    metadata,
    _tenant(),
    _session_uid(),
    Column("agent_uid", String(64), nullable=False),
    # Of the request that makes it, so that the same one waits for it; the claim comes with the
    # session.
    Column("request_id", String(128)),
    # Whoever copies renews it with every piece; what has run out is purged. 0: given up.
    Column("alive_until", BigInteger, nullable=False),
)

# Of rates that processes share: when the bucket of a subject will be full again.
buckets = Table(
    "buckets",
    metadata,
    _tenant(),
    Column("subject", String(128), primary_key=True),
    Column("full_at", BigInteger, nullable=False),
)

corpora = Table(
    "corpora",
    metadata,
    _tenant(),
    Column("uid", String(64), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("document_count", BigInteger, nullable=False),
    Column("passage_count", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    Column("purged", Boolean, nullable=False, server_default=text("false")),
    Column("request_id", String(128)),
    Column("fingerprint", LargeBinary),
)

# A version of a document each. One that is being written has a `deleted_at` that lies ahead: it is
# not there yet, and when nobody finishes it, it goes then.
documents = Table(
    "documents",
    metadata,
    _tenant(),
    Column("corpus_uid", String(64), primary_key=True),
    Column("uid", String(64), primary_key=True),
    Column("id", String(128), nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    # The same as JSON, for filters.
    Column("fields", _Fields(), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("passage_count", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    Column("purged", Boolean, nullable=False, server_default=text("false")),
    Column("request_id", String(128)),
    Column("fingerprint", LargeBinary),
)

# The index that finds them is no table of this kind: `passage_index`.
passages = Table(
    "passages",
    metadata,
    _tenant(),
    Column("corpus_uid", String(64), primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("document_uid", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    # As JSON, the outermost first.
    Column("headings", Text, nullable=False),
    Column("text", Text, nullable=False),
)
schema_versions = Table(
    "schema_versions",
    metadata,
    # MAJOR.MINOR: a server refuses another major, and accepts a newer minor.
    Column("major", Integer, primary_key=True),
    Column("minor", Integer, primary_key=True),
)

SCHEMA_MAJOR = 1
SCHEMA_MINOR = 8
