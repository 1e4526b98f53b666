"""Plans: every statement that the store issues, by the call that issues it, on filled databases."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import product
from types import FrameType
from typing import Any

from sqlalchemy import Connection, Engine, LargeBinary, event, text, update

from hansard_server.corpora.filters import parse_filter
from hansard_server.domain.access import ApiKeyRecord, Grant, Role
from hansard_server.domain.clock import now_us
from hansard_server.domain.corpora import DocumentRecord, IndexedPassage, Passage
from hansard_server.domain.errors import DomainError
from hansard_server.domain.filters import All, Comparison, Condition, Operator
from hansard_server.domain.rates import Rate
from hansard_server.domain.records import AwaitedCall, EventType, PendingKind, TurnStatus
from hansard_server.repository.api import Alteration, CreationScan, EventScan, Position, TurnScan
from hansard_server.repository.commands import (
    ArtifactQuota,
    AwaitCalls,
    ClaimScope,
    ExpireCalls,
    FindInterrupted,
    RecordStep,
    SessionName,
    StartNext,
    TurnRef,
    Upload,
    WhenBusy,
)
from hansard_server.repository.corpora import Lookup
from hansard_server.repository.forks import ForkedTurn, ForkRef, ForkTotals
from hansard_server.repository.sql.batch import Batch
from hansard_server.repository.sql.batch_reads import BatchSessions
from hansard_server.repository.sql.decisions import Named
from hansard_server.repository.sql.indexes import metadata
from hansard_server.repository.sql.known import AssumedSessions, KnownSessions
from hansard_server.repository.sql.probe import probe_write
from hansard_server.repository.sql.trips import Trip
from hansard_server.repository.sql.writes import SqlWriteTx
from tests.support import records
from tests.support.commands import (
    LEASE,
    accept,
    answers,
    append,
    claim,
    draft,
    reject,
    tool_input,
    tool_output,
)
from tests.support.records import AGENT, SESSION, TENANT

Call = Callable[[SqlWriteTx], object]
NAME = SessionName(tenant=TENANT, agent_key="key-3", session_key="key-3")
HERE = (TENANT, "session-3")
CORPUS = (TENANT, "corpus-3")
BY_CREATION = CreationScan(limit=10, after=Position(5, "uid"))
BACK = CreationScan(limit=10, after=Position(5, "uid"), descending=True)


@dataclass(frozen=True)
class Case:
    """A call, and the indexes that its last statement must use; a table's name: its key."""

    call: Callable[[SqlWriteTx], object]
    indexes: tuple[str, ...]


def scan_turns(tx: SqlWriteTx, **changes: Any) -> object:
    return tx.scan_turns(*HERE, TurnScan(limit=10, max_bytes=9, max_rows=500, **changes))


def scan_events(tx: SqlWriteTx, **changes: Any) -> object:
    return tx.scan_events(*HERE, EventScan(limit=10, max_bytes=9, max_rows=100, **changes))


NAMED = ("agents_by_key", "sessions_by_key", "session_heads")
CASES = {
    "get_agent": Case(lambda tx: tx.get_agent(TENANT, "key-3"), ("agents_by_key",)),
    "get_agent_by_uid": Case(lambda tx: tx.get_agent_by_uid(TENANT, "agent-3"), ("agents",)),
    "get_agents": Case(lambda tx: tx.get_agents(TENANT, ["agent-3", "agent-4"]), ("agents",)),
    "has_tenant": Case(lambda tx: tx.has_tenant("tenant-3"), ("tenants",)),
    # The last statement of these reads the agents of the keys' roles.
    "find_api_keys": Case(lambda tx: tx.find_api_keys(["key_3", "key_4"]), ("agents",)),
    "get_api_key": Case(lambda tx: tx.get_api_key(TENANT, "key_3"), ("agents",)),
    "find_api_key_claim": Case(lambda tx: tx.find_api_key_claim(TENANT, "r-3"), ("agents",)),
    "scan_api_keys": Case(lambda tx: tx.scan_api_keys(TENANT, BY_CREATION), ("agents",)),
    "ensure_secret": Case(lambda tx: tx.ensure_secret("s-3", b""), ("secrets",)),
    "note_api_key_use": Case(
        lambda tx: tx.note_api_key_use({(TENANT, "key_3"): 9}), ("api_keys_by_id",)
    ),
    "find_agent_claim": Case(lambda tx: tx.find_agent_claim(TENANT, "r"), ("agents_by_claim",)),
    "scan_agents": Case(lambda tx: tx.scan_agents(TENANT, BY_CREATION), ("agents_by_creation",)),
    "scan_agents_back": Case(lambda tx: tx.scan_agents(TENANT, BACK), ("agents_by_creation",)),
    "resolve_session": Case(lambda tx: tx.resolve_session(NAME), NAMED),
    "get_session": Case(lambda tx: tx.get_session(TENANT, "key-3", "key-3"), NAMED),
    "find_session_claim": Case(
        lambda tx: tx.find_session_claim(TENANT, "agent-3", "r"), ("sessions_by_claim", "agents")
    ),
    "scan_sessions": Case(
        lambda tx: tx.scan_sessions(TENANT, "agent-3", BY_CREATION),
        ("sessions_by_creation", "agents", "session_heads"),
    ),
    "scan_sessions_back": Case(
        lambda tx: tx.scan_sessions(TENANT, "agent-3", BACK),
        ("sessions_by_creation", "agents", "session_heads"),
    ),
    "find_expired_sessions": Case(
        lambda tx: tx.find_expired_sessions(9, 10), ("session_heads_expiring",)
    ),
    "last_sequence": Case(lambda tx: tx.last_sequence(*HERE), ("session_heads",)),
    "get_event": Case(lambda tx: tx.get_event(*HERE, "aev_1"), ("events_by_id",)),
    "scan_events": Case(scan_events, ("events",)),
    "scan_events_back": Case(lambda tx: scan_events(tx, descending=True), ("events",)),
    "scan_events_of_types": Case(
        lambda tx: scan_events(tx, types=frozenset({EventType.CUSTOM})), ("events",)
    ),
    "scan_events_since": Case(lambda tx: scan_events(tx, created_from_us=3), ("events",)),
    "get_turn": Case(lambda tx: tx.get_turn(*HERE, "trn_1"), ("turns",)),
    "scan_turns": Case(scan_turns, ("turns_by_number",)),
    "scan_turns_back": Case(lambda tx: scan_turns(tx, descending=True), ("turns_by_number",)),
    "scan_turns_of_status": Case(
        lambda tx: scan_turns(tx, after_number=5, statuses=frozenset({TurnStatus.FAILED})),
        ("turns_by_number",),
    ),
    "get_turns": Case(lambda tx: tx.get_turns(*HERE, ["trn_1", "trn_2"]), ("turns",)),
    "read_pulses": Case(
        lambda tx: tx.read_pulses([HERE, (TENANT, "b")]), ("session_heads", "turns")
    ),
    "find_altered": Case(lambda tx: tx.find_altered(*HERE, 3, 10), ("events_altered",)),
    "next_lease_end_s": Case(lambda tx: tx.next_lease_end_s("me"), ("turns_running",)),
    "queue_position": Case(lambda tx: tx.queue_position(*HERE, 5), ("turns_waiting",)),
    "find_unfinished_turns": Case(
        lambda tx: tx.find_unfinished_turns(10, expired_only=False), ("turns_running",)
    ),
    "find_expired_turns": Case(
        lambda tx: tx.find_unfinished_turns(10, expired_only=True), ("turns_running",)
    ),
    "find_idle_queues": Case(
        lambda tx: tx.find_idle_queues(10), ("turns_waiting", "session_heads")
    ),
    "renew_leases": Case(
        lambda tx: tx.renew_leases("me", [(*HERE, "trn_1"), (*HERE, "trn_2")], 5), ("turns",)
    ),
    "get_artifact": Case(lambda tx: tx.get_artifact(*HERE, "art_1"), ("artifacts",)),
    "get_artifacts": Case(lambda tx: tx.get_artifacts(*HERE, ["a", "b"]), ("artifacts",)),
    "scan_artifacts": Case(
        lambda tx: tx.scan_artifacts(*HERE, BY_CREATION), ("artifacts_by_creation",)
    ),
    "scan_blobs": Case(
        lambda tx: tx.scan_blobs((TENANT, "blob-3"), 10), ("blobs", "artifacts_by_blob")
    ),
    "total_artifacts": Case(lambda tx: tx.total_artifacts(*HERE), ("session_heads",)),
}
OF_PASSAGES = ("passages", "documents")
CASES |= {
    "get_corpus": Case(lambda tx: tx.get_corpus(TENANT, "key-3"), ("corpora_by_key",)),
    "find_corpus_claim": Case(lambda tx: tx.find_corpus_claim(TENANT, "r"), ("corpora_by_claim",)),
    "scan_corpora": Case(lambda tx: tx.scan_corpora(TENANT, BY_CREATION), ("corpora_by_creation",)),
    "get_document": Case(lambda tx: tx.get_document(*CORPUS, "doc_3"), ("documents_by_id",)),
    "find_document_claim": Case(
        lambda tx: tx.find_document_claim(*CORPUS, "r"), ("documents_by_claim",)
    ),
    "scan_documents": Case(lambda tx: tx.scan_documents(*CORPUS, BACK), ("documents_by_update",)),
    "find_passages": Case(
        lambda tx: look_up(tx, (3,), condition=Comparison(("a",), Operator.GREATER, 0)),
        OF_PASSAGES,
    ),
    "find_passages_of_frequent_terms": Case(
        lambda tx: look_up(tx, (1_000,), (1_001, 5)), OF_PASSAGES
    ),
    "find_documents": Case(
        lambda tx: tx.find_documents(*CORPUS, Comparison(("a",), Operator.GREATER, 0), 10),
        ("documents_by_",),
    ),
    "get_passages": Case(
        lambda tx: tx.get_passages(*CORPUS, [1_000_003, 1_000_013]), ("documents",)
    ),
}
# The full-text index is asked for a term, it is not read whole; the rows are those that it found.
MATCH_OF_SQLITE = ("SCAN passage_index VIRTUAL TABLE INDEX 0:M", "SCAN found")
# These look at all that waits, runs or was deleted: the index holds nothing else.
WHOLE_INDEX = {"find_unfinished_turns", "find_expired_turns", "find_idle_queues", "renew_leases"}
# The keys that a statement was given, unfolded.
KEYS_OF_SQLITE = "SCAN wanted VIRTUAL TABLE"
# Few rows of a window that is bounded: PostgreSQL may well sort what is left of it.
SORTED_WINDOW = {"scan_events_of_types"}


NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) "
FILL = (
    (
        "INSERT INTO agents (tenant, uid, key, name, description, configuration, metadata, "
        "enabled, etag, created_at, updated_at, request_id, fingerprint) {numbers} SELECT "
        "'tenant-1', 'agent-' || i, 'key-' || i, '', '', '', '', true, '', i, i, 'request-' || "
        "i, '' FROM n"
    ),
    (
        "INSERT INTO sessions (tenant, uid, agent_uid, key, name, description, metadata, "
        "enabled, tti_minutes, etag, created_at, updated_at, request_id, fingerprint, "
        "deleted_at) {numbers} SELECT 'tenant-1', 'session-' || i, 'agent-' || (i % 9), 'key-' "
        "|| i, '', '', '', true, 0, '', i, i, 'request-' || i, '', CASE WHEN i % 99 = 0 THEN i "
        "END FROM n"
    ),
    (
        "INSERT INTO session_heads (tenant, session_uid, last_sequence, last_event_at, "
        "last_active_at, status, queued_turns, turn_count, input_tokens, output_tokens, "
        "reasoning_tokens, artifact_files, artifact_bytes, tti_minutes, expire_at, deleted) "
        "{numbers} SELECT 'tenant-1', 'session-' || i, 400, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, "
        "CASE WHEN i % 9 = 0 THEN i END, false FROM n"
    ),
    (
        "INSERT INTO events (tenant, session_uid, sequence, id, type, created_at, hide_reason, "
        "size_bytes, payload) {numbers} SELECT 'tenant-1', 'session-' || (i % 10), i / 10 + 1, "
        "'aev_' || i, 24, i, 0, 0, '' FROM n"
    ),
    (
        "INSERT INTO turns (tenant, session_uid, id, number, status, input_event_id, "
        "input_type, input, first_sequence, last_sequence, pending_calls, attempt, error, "
        "input_tokens, output_tokens, reasoning_tokens, open_calls, taken_sequence, "
        "steered_sequence, fence, created_at, lease_until, pending_until) {numbers} SELECT "
        "'tenant-1', 'session-' || (i % 10), 'trn_' || i, i, CASE WHEN i % 40 = 0 THEN 1 "
        "WHEN i % 41 = 0 THEN 2 WHEN i % 43 = 0 THEN 3 ELSE 4 END, '', 20, '', i, i, '', 0, "
        "'', 0, 0, 0, '[]', 0, 0, 0, i, i, i FROM n"
    ),
    (
        "INSERT INTO claims (tenant, session_uid, scope, request_id, fingerprint) {numbers} "
        "SELECT 'tenant-1', 'session-' || (i % 10), 1, 'request-' || i, '' FROM n"
    ),
    (
        "INSERT INTO artifacts (tenant, session_uid, id, filename, mime_type, size_bytes, "
        "sha256, description, metadata, source, blob_key, created_at, updated_at) {numbers} "
        "SELECT 'tenant-1', 'session-' || (i % 10), 'art_' || i, '', '', 0, '', '', '', 1, "
        "'blob-' || i, i, i FROM n"
    ),
    (
        "INSERT INTO blobs (tenant, key, shared_as, unreferenced_since, created_at) {numbers} "
        "SELECT 'tenant-1', 'blob-' || i, CASE WHEN i % 9 > 0 THEN 'digest-' || i END, "
        "CASE WHEN i % 9 = 0 THEN i END, i FROM n"
    ),
    (
        "INSERT INTO api_keys (tenant, id, name, secret_sha256, created_at, request_id, "
        "fingerprint) {numbers} SELECT 'tenant-1', 'key_' || i, '', '', i, 'r-' || i, '' FROM n"
    ),
    (
        "INSERT INTO roles (tenant, api_key_id, agent_uid, role) {numbers} SELECT 'tenant-1', "
        "'key_' || i, 'agent-' || i, 3 FROM n"
    ),
    "INSERT INTO tenants (key, created_at) {numbers} SELECT 'tenant-' || i, i FROM n",
    "INSERT INTO secrets (name, value) {numbers} SELECT 's-' || i, '' FROM n",
    (
        "INSERT INTO corpora (tenant, uid, key, name, description, metadata, document_count, "
        "passage_count, created_at, request_id, fingerprint, deleted_at) {numbers} SELECT "
        "'tenant-1', 'corpus-' || i, 'key-' || i, '', '', '', 0, 0, i, 'request-' || i, '', "
        "CASE WHEN i % 99 = 0 THEN i END FROM n"
    ),
    (
        "INSERT INTO documents (tenant, corpus_uid, uid, id, metadata, fields, size_bytes, "
        "passage_count, created_at, updated_at, request_id, fingerprint, deleted_at) {numbers} "
        "SELECT 'tenant-1', 'corpus-' || (i % 10), 'document-' || i, 'doc_' || i, '', "
        "'{{\"a\": 1}}', 0, 0, i, i, 'request-' || i, '', CASE WHEN i % 99 = 0 THEN i END FROM n"
    ),
    (
        "INSERT INTO passages (tenant, corpus_uid, id, document_uid, number, headings, text) "
        "{numbers} SELECT 'tenant-1', 'corpus-' || (i % 10), 1000000 + i, 'document-' || i, 1, "
        "'[]', '' FROM n"
    ),
)
# Terms of a few passages each, and two of very many.
FILL_INDEX = {
    "sqlite": "INSERT INTO passage_index (rowid, terms) {numbers} SELECT "
    "1000000 + i, printf('%012x %012x', i % 700, 1000 + i % 2) FROM n",
    "postgresql": "INSERT INTO passage_index (tenant, corpus_uid, id, terms) {numbers} SELECT "
    "'tenant-1', 'corpus-' || (i % 10), 1000000 + i, ARRAY[i % 700, 1000 + i % 2] FROM n",
}


def fill(connection: Connection) -> None:
    """Fill a database, so that it is worth while to use an index."""
    for statement in (*FILL, FILL_INDEX[connection.dialect.name]):
        connection.execute(text(statement.format(numbers=NUMBERS)))
    if connection.dialect.name == "sqlite":
        # Where bytes belong, '' is a text there.
        for table in metadata.sorted_tables:
            empty = {c: b"" for c in table.c if isinstance(c.type, LargeBinary) and not c.nullable}
            if empty:
                connection.execute(update(table).values(empty))
    connection.execute(text("ANALYZE"))


# Everything else that is issued ------------------------------------------------------------------


def run(tx: SqlWriteTx, *statements: str) -> None:
    """Make the rows that a call needs."""
    for statement in statements:
        tx.connection.execute(text(statement))


KEY = ApiKeyRecord(
    tenant=TENANT,
    id="key-new",
    name="",
    secret_sha256=b"",
    grants=(Grant(Role.AGENT_USER, "agent-3", "key-3"),),
    created_at_us=1,
)
FORK = ForkRef(tenant=TENANT, uid="fork", source_uid="session-3", lease_s=30.0)
TOTALS = ForkTotals(
    last_sequence=0,
    last_event_at_us=0,
    turn_count=0,
    usage=records.turn(1, TurnStatus.FAILED).usage,
    artifact_files=0,
    artifact_bytes=0,
)
OTHER = replace(NAME, session_key="key-12")
RUNNING_HERE = (
    "UPDATE session_heads SET unfinished_turn_id = 'trn_41', status = 2 "
    "WHERE session_uid = 'session-1'"
)


def creation_scans() -> Iterator[CreationScan]:
    for after, descending, since, before in product(
        (None, Position(5, "uid")), (False, True), (None, 1), (None, 9)
    ):
        yield CreationScan(
            limit=10,
            after=after,
            descending=descending,
            created_from_us=since,
            created_before_us=before,
        )


def lists(tx: SqlWriteTx) -> None:
    for scan in creation_scans():
        tx.scan_agents(TENANT, scan)
        tx.scan_sessions(TENANT, "agent-3", scan)
        tx.scan_artifacts(*HERE, scan)
        tx.scan_api_keys(TENANT, scan)


def event_pages(tx: SqlWriteTx) -> None:
    types = (frozenset[EventType](), frozenset({EventType.AGENT_OUTPUT}))
    for descending, hidden, of, turn_id in product(
        (False, True), (False, True), types, (None, "trn_13")
    ):
        scan_events(tx, descending=descending, include_hidden=hidden, types=of, turn_id=turn_id)


def turn_pages(tx: SqlWriteTx) -> None:
    statuses = (frozenset[TurnStatus](), frozenset({TurnStatus.COMPLETED}))
    for descending, of in product((False, True), statuses):
        scan_turns(tx, descending=descending, statuses=of)
    scan_turns(tx, after_number=1)


def update_twice(tx: SqlWriteTx) -> None:
    # The first update of what a request made keeps the first answer.
    for number in range(2):
        agent = tx.get_agent(TENANT, "key-3")
        tx.update_agent(replace(agent, etag=f"e{number}"))
        record = tx.get_session(TENANT, "key-3", "key-3").record
        tx.update_session(replace(record, etag=f"e{number}"))


def create(tx: SqlWriteTx) -> None:
    for number, made in enumerate((None, claim("new"))):
        agent = replace(AGENT, uid=f"new-{number}", key=f"new-{number}")
        tx.insert_agent(agent, made)
        tx.insert_session(replace(SESSION, uid=f"new-{number}", agent_uid=agent.uid), made)
    tx.get_session_by_uid(TENANT, "session-3")
    tx.get_agents(TENANT, ["agent-3"])


def delete(tx: SqlWriteTx) -> None:
    run(tx, RUNNING_HERE)
    tx.delete_session(TENANT, "session-1", 9)
    tx.delete_expired_session(TENANT, "session-9", 10**9)
    tx.delete_agent(TENANT, "agent-4", 9)
    tx.delete_artifact(TENANT, "session-3", "art_3")


def purge(tx: SqlWriteTx) -> None:
    run(
        tx,
        "UPDATE session_heads SET deleted = true WHERE session_uid = 'session-99'",
        "UPDATE sessions SET purged = true WHERE deleted_at > 200",
        "UPDATE agents SET deleted_at = 5 WHERE uid IN ('agent-5', 'agent-3000')",
    )
    tx.begin_fork(replace(FORK, lease_s=0.0), "agent-3", None)
    tx.purge_deleted(10**9, keep_rows_us=1, max_rows=100_000)


def alter(tx: SqlWriteTx) -> None:
    run(tx, "UPDATE events SET tool_call_id = 'call' WHERE id = 'aev_13'")
    for alteration in Alteration:
        tx.alter_event(*HERE, "aev_13", alteration, 9)
    tx.alter_event(*HERE, "aev_23", Alteration.HIDE, 9)


def fork(tx: SqlWriteTx) -> None:
    tx.begin_fork(replace(FORK, uid="dead", lease_s=0.0), "agent-3", "r")
    assert tx.begin_fork(FORK, "agent-3", "r")
    name = replace(NAME, agent_key="key-3", session_key="key-3")
    plan = tx.plan_fork(tx.resolve_session(name), 400)
    tx.copy_fork_events(FORK, plan.sequences[:100], 1)
    tx.copy_fork_turns(FORK, list(_forked_turns()))
    tx.copy_fork_artifacts(FORK, ["art_3", "art_13"])
    tx.write_fork_events(FORK, [records.event(101)])
    tx.get_payloads(TENANT, FORK.uid, [1, 2])
    tx.finish_fork(
        replace(SESSION, uid=FORK.uid, agent_uid="agent-3", key="fork"),
        claim("fork"),
        TOTALS,
        replace(records.turn(9, TurnStatus.INTERRUPTED), session_uid=FORK.uid),
    )
    tx.give_up_fork(TENANT, "dead")


def give_up(tx: SqlWriteTx) -> None:
    tx.give_up_all_forks()


def access(tx: SqlWriteTx) -> None:
    tx.insert_tenant("new", 1)
    for key, made in ((KEY, None), (replace(KEY, id="key-other"), claim("r"))):
        tx.insert_api_key(key, made)
    tx.find_api_keys([KEY.id])
    tx.find_api_key_claim(TENANT, "r")
    tx.note_api_key_use({(TENANT, KEY.id): 5})
    tx.revoke_api_key(TENANT, KEY.id, 9)
    tx.ensure_secret("secret", b"value")


def sweeps(tx: SqlWriteTx) -> None:
    tx.find_expired_artifacts(9, 10)
    tx.find_unknown_blobs(TENANT, ["blob-1", "blob-2"])
    tx.adopt_blobs(TENANT, ["new-1", "blob-1"], 9)
    run(
        tx,
        "UPDATE artifacts SET blob_key = 'none' WHERE blob_key IN ('blob-1', 'blob-9')",
    )
    tx.settle_blobs([(TENANT, f"blob-{n}") for n in (1, 2, 9, 18)], 99, before_us=50)
    tx.find_owned_turns("me", 10)
    tx.find_expired_calls(10)


def rates(tx: SqlWriteTx) -> None:
    rate = Rate(60.0)
    for _ in range(2):
        tx.lease_permits(TENANT, "subject-3", rate, 5)
    tx.forget_full_buckets()


def batch(tx: SqlWriteTx, *commands: Any, skip_locked: bool = False) -> None:
    for outcome in Batch(tx.connection, now_us, skip_locked=skip_locked).run(commands):
        assert not isinstance(outcome, Exception), repr(outcome)


def asked(tag: str) -> AwaitedCall:
    kind = PendingKind.APPROVAL
    return AwaitedCall(tool_call_id=f"asked-{tag}", kind=kind, timeout_s=60.0)


def commands(tx: SqlWriteTx) -> None:
    """Run every command, each as the writer and as one that waits does."""
    run(
        tx,
        RUNNING_HERE,
        "UPDATE turns SET status = 4 WHERE session_uid = 'session-1' AND id <> 'trn_41'",
        "UPDATE turns SET status = 1 WHERE id IN ('trn_12', 'trn_22')",
        "UPDATE session_heads SET queued_turns = 2 WHERE session_uid = 'session-2'",
    )
    here = replace(NAME, agent_key="key-1", session_key="key-1")
    upload = Upload(
        artifacts=(_new_artifact(),), quota=ArtifactQuota(max_files=9_999, max_bytes=10**9)
    )
    # The answer of the first round gives the turn a new owner.
    for fences, skip_locked in enumerate((False, True)):
        tag = str(skip_locked)
        mine = TurnRef(tenant=TENANT, session_uid="session-1", turn_id="trn_41", fence=fences)
        batch(
            tx,
            append(
                draft(id=f"aev_{tag}", given_id=True),
                tool_input(f"call-{tag}"),
                session=OTHER,
                claim=claim(tag),
            ),
            accept(
                session=replace(NAME, agent_key="key-4", session_key="key-13"), claim=claim(tag)
            ),
            RecordStep(turn=mine, drafts=(replace(draft(), hides=(1, 2, 3)),)),
            AwaitCalls(turn=mine, drafts=(tool_input(f"asked-{tag}"),), calls=(asked(tag),)),
            ExpireCalls(
                tenant=TENANT,
                session_uid="session-1",
                turn_id="trn_41",
                close=lambda call: tool_output(call.tool_call_id),
                lease=LEASE,
            ),
            answers(reject(f"asked-{tag}"), session=here, claim=claim(f"asked-{tag}")),
            FindInterrupted(session=here),
            accept(session=here, when_busy=WhenBusy.STEER),
            StartNext(tenant=TENANT, session_uid="session-2", lease=LEASE),
            skip_locked=skip_locked,
        )
    batch(tx, append(draft(), session=OTHER, scope=ClaimScope.UPLOAD_ARTIFACTS, upload=upload))


def known_sessions(tx: SqlWriteTx) -> None:
    """Look whether a session and its turn are as they were a moment ago."""
    run(tx, RUNNING_HERE)
    mine = TurnRef(tenant=TENANT, session_uid="session-1", turn_id="trn_41", fence=0)
    sqlite = tx.connection.dialect.name == "sqlite"
    known = None if sqlite else KnownSessions()
    sessions = BatchSessions(sqlite=sqlite, clock=now_us, skip_locked=not sqlite, known=known)
    here = replace(NAME, agent_key="key-1", session_key="key-1")
    sessions.read(Trip(tx.connection), (append(session=here), RecordStep(turn=mine, drafts=())))
    named = {name: found for name, found in sessions.named.items() if isinstance(found, Named)}
    [state] = sessions.states.values()
    assert named
    assert state.turns
    trip = Trip(tx.connection)
    AssumedSessions(state.now_us, sessions.states, named).ask(trip)
    trip.make()


DOCUMENT = DocumentRecord(
    tenant=TENANT,
    corpus_uid="corpus-3",
    uid="new",
    id="doc_13",
    metadata=b"",
    fields={"a": 1},
    size_bytes=0,
    passage_count=1,
    created_at_us=1,
    updated_at_us=1,
)


# Statements follow the form of a filter; its values are parameters.
FILTERS = (
    "doc.owner.name = 'o'",
    "doc.owner.name IN ('o', 'p') AND doc.even = false",
    "doc.owner.name = 'o' AND doc.even = true",
    "doc.owner.name > 'o' AND doc.owner.name < 'p'",
)


def look_up(tx: SqlWriteTx, *terms: tuple[int, ...], condition: Condition | None = None) -> object:
    lookup = Lookup(terms=terms, condition=condition, limit=10, max_rows=500)
    return tx.find_passages(*CORPUS, lookup)


def corpora(tx: SqlWriteTx) -> None:
    for scan in creation_scans():
        tx.scan_corpora(TENANT, scan)
        tx.scan_documents(*CORPUS, scan)
    for terms in (((3,),), ((1_000,), (1_001, 5)), ((3, 4),), ((3,), (4,), (5,)), ((3, 4), (5, 6))):
        look_up(tx, *terms)
        tx.count_passages(terms, 10)
    for filter_text in FILTERS:
        condition = parse_filter(filter_text, "")
        assert condition is not None
        for terms in (((3,),), ((3,), (4, 5))):
            look_up(tx, *terms, condition=All((condition,)))
        tx.find_documents(*CORPUS, All((condition,)), 10)
    corpus = replace(tx.get_corpus(TENANT, "key-3"), uid="new", key="new")
    for number, made in enumerate((None, claim("new"))):
        tx.insert_corpus(replace(corpus, uid=f"new-{number}", key=f"new-{number}"), made)
    passage = IndexedPassage(Passage(1, (), "a"), frozenset({1, 2}))
    for document, made in ((DOCUMENT, None), (replace(DOCUMENT, uid="n2"), claim("doc"))):
        tx.begin_document(document, 10**9)
        tx.add_passages(document, [passage])
        tx.finish_document(document, made, 9)
    tx.delete_document(*CORPUS, "doc_23", 9)
    tx.delete_corpus(TENANT, "corpus-4", 9)


def purge_corpora(tx: SqlWriteTx) -> None:
    run(
        tx,
        "UPDATE documents SET purged = true WHERE deleted_at > 200",
        "UPDATE corpora SET purged = true WHERE deleted_at > 200",
        "UPDATE corpora SET deleted_at = 5 WHERE uid = 'corpus-5'",
    )
    tx.purge_deleted(10**9, keep_rows_us=1, max_rows=100_000)


CALLS: dict[str, Call] = {
    "lists": lists,
    "event_pages": event_pages,
    "turn_pages": turn_pages,
    "update_twice": update_twice,
    "create": create,
    "delete": delete,
    "purge": purge,
    "alter": alter,
    "fork": fork,
    "give_up": give_up,
    "access": access,
    "sweeps": sweeps,
    "rates": rates,
    "corpora": corpora,
    "purge_corpora": purge_corpora,
    "probe": lambda tx: probe_write(tx.connection),
    "commands": commands,
    "known_sessions": known_sessions,
}
"""Calls by what they are about; of these every statement is looked at, not only the last."""


def _new_artifact() -> Any:
    return replace(records.artifact(1), session_uid="session-12", id="art_new", blob_key="new")


def _forked_turns() -> Iterator[ForkedTurn]:
    for number, id_ in enumerate(("trn_13", "trn_23"), 1):
        yield ForkedTurn(
            id=id_,
            number=number,
            first_sequence=number,
            last_sequence=number,
            first_event_id="",
            size_bytes=0,
        )


# What is issued, and how it is run ---------------------------------------------------------------

_PARAMETERS = re.compile(r"\((?:(?:\?|%\([^)]*\)s(?:::\w+)*)(?:, )?)+\)")
_WITHOUT_PLAN = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "DEALLOCATE")


def normal(statement: str) -> str:
    """Return the statement with any number of parameters in a list the same."""
    return _PARAMETERS.sub("(…)", statement)


def issued_by_the_store() -> bool:
    """Tell whether the statement that is being executed is the store's own, not a test's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/sqlalchemy/" not in name and name != __file__:
            return "/hansard_server/repository/sql/" in name and "/migrations/" not in name
        frame = frame.f_back
    return False


@dataclass
class Issued:
    """Statements of the store, in the order in which they were issued, with their parameters."""

    statements: list[tuple[str, Any]] = field(default_factory=list)

    def note(self, _c: object, _u: object, statement: str, parameters: Any, *_: object) -> None:
        if not statement.startswith(_WITHOUT_PLAN) and issued_by_the_store():
            self.statements.append((statement, parameters))

    @property
    def normal(self) -> set[str]:
        return {normal(statement) for statement, _ in self.statements}


@contextmanager
def noting(target: Engine | type[Engine] | Connection) -> Iterator[Issued]:
    """Note what the store issues."""
    issued = Issued()
    event.listen(target, "before_cursor_execute", issued.note)
    try:
        yield issued
    finally:
        event.remove(target, "before_cursor_execute", issued.note)


def explain(connection: Connection, call: Call, how: str = "") -> list[list[Any]]:
    """Return the plans of the statements of a call, in PostgreSQL's or SQLite's own form."""
    plans: list[list[Any]] = []
    prefix = how or ("EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN")

    def look(_c: object, _u: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith(_WITHOUT_PLAN) or not issued_by_the_store():
            return
        # Of an executemany all rows are found alike. Before it is run: what it finds may be gone.
        one = parameters[0] if isinstance(parameters, list) else parameters
        cursor = connection.connection.cursor()
        # ANALYZE runs the statement: what it does is taken back, for it is still to be done.
        cursor.execute("SAVEPOINT explained")
        cursor.execute(f"{prefix} {statement}", one)
        plans.append(cursor.fetchall())
        cursor.execute("ROLLBACK TO SAVEPOINT explained")
        cursor.close()

    event.listen(connection, "before_cursor_execute", look)
    try:
        # Nothing may be there to be found.
        with suppress(DomainError):
            call(SqlWriteTx(connection))
    finally:
        event.remove(connection, "before_cursor_execute", look)
    return plans


def planned(connection: Connection) -> set[str]:
    """Return the statements that have a line here."""
    known: set[str] = set()
    calls = {name: case.call for name, case in CASES.items()} | CALLS
    for call in calls.values():
        savepoint = connection.begin_nested()
        with noting(connection) as issued, suppress(DomainError):
            call(SqlWriteTx(connection))
        known |= issued.normal
        savepoint.rollback()
    return known
