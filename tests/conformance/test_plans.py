"""Each statement of a read finds its rows by the index that is there for it, and sorts nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from hansard_server.domain.clock import now_us
from hansard_server.domain.errors import DomainError
from hansard_server.domain.records import EventType, TurnStatus
from hansard_server.repository.api import CreationScan, EventScan, Position, TurnScan
from hansard_server.repository.commands import RecordStep, SessionName, StartNext, TurnRef
from hansard_server.repository.sql.batch import Batch
from hansard_server.repository.sql.engine import make_engine, writing
from hansard_server.repository.sql.writes import SqlWriteTx
from tests.support.commands import LEASE, accept, append, claim, draft, tool_input
from tests.support.databases import Databases
from tests.support.records import TENANT

NAME = SessionName(tenant=TENANT, agent_key="key-3", session_key="key-3")
HERE = (TENANT, "session-3")
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
    "total_artifacts": Case(lambda tx: tx.total_artifacts(*HERE), ("session_heads",)),
}
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
        "steered_sequence, fence, created_at, "
        "lease_until) {numbers} SELECT 'tenant-1', 'session-' || (i % 10), 'trn_' || i, i, CASE"
        " WHEN i % 40 = 0 THEN 1 WHEN i % 41 = 0 THEN 2 ELSE 4 END, '', 20, '', i, i, '', 0, "
        "'', 0, 0, 0, '[]', 0, 0, 0, i, i FROM n"
    ),
    (
        "INSERT INTO artifacts (tenant, session_uid, id, filename, mime_type, size_bytes, "
        "sha256, description, metadata, source, blob_key, created_at, updated_at) {numbers} "
        "SELECT 'tenant-1', 'session-' || (i % 10), 'art_' || i, '', '', 0, '', '', '', 1, "
        "'blob-' || i, i, i FROM n"
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
    "ANALYZE",
)


@pytest.fixture(scope="module")
def filled(databases: Databases) -> Iterator[Callable[[str], Engine]]:
    """Give the engine of a filled database, by its kind; each is made once."""
    made: dict[str, tuple[str, Engine]] = {}

    def engine_of(kind: str) -> Engine:
        if kind not in made:
            url = databases.migrated(kind)
            engine = make_engine(url)
            made[kind] = (url, engine)
            with writing(engine).begin() as connection:
                for statement in FILL:
                    connection.execute(text(statement.format(numbers=NUMBERS)))
        return made[kind][1]

    yield engine_of
    for url, engine in made.values():
        engine.dispose()
        databases.drop(url)


def explain(connection: Connection, call: Callable[[SqlWriteTx], object]) -> list[str]:
    """Return the plans of the statements of a call."""
    seen: list[tuple[str, Any]] = []

    def note(_c: object, _u: object, statement: str, parameters: Any, *_: object) -> None:
        seen.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    try:
        call(SqlWriteTx(connection))
    except DomainError:
        pass  # nothing is there to be found
    finally:
        event.remove(connection, "before_cursor_execute", note)
    prefix = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    plans = []
    for statement, parameters in seen:
        # Of an executemany all rows are found alike.
        one = parameters[0] if isinstance(parameters, list) else parameters
        rows = connection.exec_driver_sql(f"{prefix} {statement}", one).all()
        plans.append("\n".join(str(row[-1]) for row in rows))
    return plans


@pytest.mark.parametrize("name", CASES)
def test_statement_uses_its_indexes(
    filled: Callable[[str], Engine], database: str, name: str
) -> None:
    case = CASES[name]
    with writing(filled(database)).begin() as connection:
        plans = explain(connection, case.call)
        connection.rollback()
    if name.startswith("scan_turns"):
        assert all("turns_by_number" in plan for plan in plans), plans
    plan = plans[-1]

    for index in case.indexes:
        own_key = "_" not in index.removeprefix("session_")
        names = {"sqlite": f"sqlite_autoindex_{index}_1", "postgresql": f"{index}_pkey"}
        assert (names[database] if own_key else index) in plan, plan
    assert "Seq Scan" not in plan, plan
    plan = plan.replace(KEYS_OF_SQLITE, "")
    if name not in WHOLE_INDEX:
        assert "SCAN" not in plan, plan
        assert name in SORTED_WINDOW or "Sort" not in plan, plan
        assert "TEMP B-TREE" not in plan, plan


ACCESS = {
    "find_api_keys": ("api_keys_by_id", "roles", "agents"),
    "get_api_key": ("api_keys_by_id", "roles", "agents"),
    "find_api_key_claim": ("api_keys_by_claim", "roles", "agents"),
    "scan_api_keys": ("api_keys_by_creation", "roles", "agents"),
}


@pytest.mark.parametrize("name", ACCESS)
def test_keys_are_found_by_their_indexes(
    filled: Callable[[str], Engine], database: str, name: str
) -> None:
    with writing(filled(database)).begin() as connection:
        plans = explain(connection, CASES[name].call)
    assert len(plans) == len(ACCESS[name])
    for plan, index in zip(plans, ACCESS[name], strict=True):
        names = {"sqlite": f"sqlite_autoindex_{index}_1", "postgresql": f"{index}_pkey"}
        assert (index if "_by_" in index else names[database]) in plan, plan
        assert "Seq Scan" not in plan, plan
        assert "Sort" not in plan, plan


def test_batch_looks_up_every_key(filled: Callable[[str], Engine], database: str) -> None:
    name = replace(NAME, agent_key="key-3", session_key="key-12")
    turn = TurnRef(tenant=TENANT, session_uid="session-1", turn_id="trn_41", fence=0)
    commands = [
        append(draft(id="aev_1", given_id=True), tool_input("c"), session=name, claim=claim("r")),
        accept(session=replace(NAME, agent_key="key-4", session_key="key-13"), claim=claim("r")),
        RecordStep(turn=turn, drafts=(draft(),)),
        StartNext(tenant=TENANT, session_uid="session-0", lease=LEASE),
    ]
    with writing(filled(database)).begin() as connection:
        connection.execute(text("UPDATE session_heads SET queued_turns = 1"))
        none = "x''" if database == "sqlite" else "''"
        connection.execute(
            text(f"UPDATE turns SET input = {none}, pending_calls = {none}, error = {none}")  # noqa: S608 - ours
        )
        plans = explain(connection, lambda tx: Batch(tx.connection, now_us).run(commands))
        connection.rollback()

    assert len(plans) >= 10
    for plan in plans:
        assert "Seq Scan" not in plan, plan
        assert "SCAN" not in plan.replace(KEYS_OF_SQLITE, ""), plan
