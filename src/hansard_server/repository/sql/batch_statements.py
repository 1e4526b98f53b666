"""The statements of a batch, built once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from hansard_server.domain.records import TurnStatus
from hansard_server.repository.sql import tables
from hansard_server.repository.sql.engine import (
    database_now_us,
    lock_for_update,
    row_version,
    transaction_version,
)
from hansard_server.repository.sql.keysets import key_part, key_rows, select_by_keys

_heads = tables.session_heads
_events = tables.events
_turns = tables.turns
_claims = tables.claims

_agents = tables.agents
_sessions = tables.sessions


def _named_columns(session_key: ColumnElement[str]) -> Sequence[ColumnElement[Any]]:
    """Return what is selected of an agent and its session."""
    return (
        _agents.c.tenant,
        _agents.c.key.label("agent_key"),
        session_key.label("session_key"),
        _agents.c.enabled.label("agent_enabled"),
        _sessions.c.uid.label("session_uid"),
        _sessions.c.enabled.label("session_enabled"),
    )


def _is_named(session_key: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition of the agent's session with the key."""
    return and_(
        _sessions.c.tenant == _agents.c.tenant,
        _sessions.c.agent_uid == _agents.c.uid,
        _sessions.c.key == session_key,
        _sessions.c.deleted_at.is_(None),
    )


def _named() -> Select[Any]:
    """Return the select of agents with their sessions by (tenant, agent key, session key).

    An agent without the session comes with none. Agents are looked up for each key, and so are
    their sessions.
    """
    rows = key_rows()
    tenant, agent_key, session_key = (
        key_part(rows, index, column.type)
        for index, column in enumerate((_agents.c.tenant, _agents.c.key, _sessions.c.key))
    )
    named_agents = and_(
        _agents.c.tenant == tenant, _agents.c.key == agent_key, _agents.c.deleted_at.is_(None)
    )
    return select(*_named_columns(session_key)).select_from(
        rows.join(_agents, named_agents).outerjoin(_sessions, _is_named(session_key))
    )


NAMED = _named()


def _lone() -> Select[Any]:
    """Return the select of one agent, its session, that session's head, and one claim in it.

    As NAMED, HEADS and CLAIMS together: for SQLite, where nothing has to be locked before it is
    read. Columns of what is not there are NULL.
    """
    session_key: ColumnElement[str] = bindparam("b_session_key", type_=String)
    head = and_(_heads.c.tenant == _sessions.c.tenant, _heads.c.session_uid == _sessions.c.uid)
    claim = and_(
        _claims.c.tenant == _sessions.c.tenant,
        _claims.c.session_uid == _sessions.c.uid,
        _claims.c.scope == bindparam("b_scope"),
        _claims.c.request_id == bindparam("b_request_id"),
    )
    return (
        select(
            *_named_columns(session_key),
            *(column for column in _heads.c if column.name not in {"tenant", "session_uid"}),
            *(column for column in _claims.c if column.name not in {"tenant", "session_uid"}),
        )
        .select_from(
            _agents.outerjoin(_sessions, _is_named(session_key))
            .outerjoin(_heads, head)
            .outerjoin(_claims, claim)
        )
        .where(
            _agents.c.tenant == bindparam("b_tenant"),
            _agents.c.key == bindparam("b_agent_key"),
            _agents.c.deleted_at.is_(None),
        )
    )


LONE = _lone()
UNLOCKED_HEADS = select_by_keys(
    *_heads.c, source=_heads, keys=(_heads.c.tenant, _heads.c.session_uid)
).order_by(_heads.c.tenant, _heads.c.session_uid)
HEADS = lock_for_update(UNLOCKED_HEADS, of=_heads)
# Nothing is waited for, so that the time is that of the lock.
HEADS_SKIPPING = lock_for_update(
    UNLOCKED_HEADS.add_columns(
        database_now_us().label("now_us"),
        row_version(_heads).label("version"),
        transaction_version().label("own_version"),
    ),
    of=_heads,
    skip_locked=True,
)
NOW = select(database_now_us().label("now_us"))
CLAIMS = select_by_keys(
    *_claims.c,
    source=_claims,
    keys=(_claims.c.tenant, _claims.c.session_uid, _claims.c.scope, _claims.c.request_id),
)
KNOWN_EVENTS = select_by_keys(
    _events.c.tenant,
    _events.c.session_uid,
    _events.c.id,
    _events.c.sequence,
    _events.c.type,
    _events.c.payload,
    source=_events,
    keys=(_events.c.tenant, _events.c.session_uid, _events.c.id),
)
CALL_EVENTS = select_by_keys(
    _events.c.tenant,
    _events.c.session_uid,
    _events.c.tool_call_id,
    _events.c.type,
    _events.c.hide_reason,
    _events.c.deleted_at,
    source=_events,
    keys=(_events.c.tenant, _events.c.session_uid, _events.c.tool_call_id),
).where(_events.c.tool_call_id.is_not(None))
_TURN = (*_turns.c, row_version(_turns).label("version"))
TURNS = select_by_keys(
    *_TURN, source=_turns, keys=(_turns.c.tenant, _turns.c.session_uid, _turns.c.id)
)
# In the text rather than as a parameter, so that both databases see that the partial index applies.
QUEUED: Any = literal_column(str(int(TurnStatus.QUEUED)))
_waiting = _turns.alias("waiting")


def _next_waiting() -> Select[Any]:
    """Return the select of the turn that waits longest in each session.

    Its number is looked up for each key. As a condition on the turns, PostgreSQL would look it up
    for each turn that waits anywhere.
    """
    rows = key_rows()
    tenant, session_uid = (
        key_part(rows, index, column.type)
        for index, column in enumerate((_turns.c.tenant, _turns.c.session_uid))
    )
    number = (
        select(func.min(_waiting.c.number))
        .where(
            _waiting.c.tenant == tenant,
            _waiting.c.session_uid == session_uid,
            _waiting.c.status == QUEUED,
        )
        .correlate(rows)
        .scalar_subquery()
    )
    of_session = (_turns.c.tenant == tenant, _turns.c.session_uid == session_uid)
    return select(*_TURN).select_from(
        rows.join(_turns, and_(*of_session, _turns.c.number == number))
    )


NEXT_WAITING = _next_waiting()


def _refused_unless(condition: ColumnElement[bool]) -> ColumnElement[int]:
    """Return what PostgreSQL can't compute unless the condition holds: the statement fails."""
    return literal_column("1", Integer) // case((condition, 1), else_=0)


def _are_all(locked: Select[Any]) -> tuple[CTE, ColumnElement[bool]]:
    """Return the locked rows, and the condition that they are as many as there are keys."""
    rows = locked.cte("locked")
    return rows, func.count(rows.c.locked) == bindparam("b_count", type_=BigInteger)


def _heads_as_known() -> Select[Any]:
    """Return what locks heads, and fails unless all are there in the version that is known.

    Keys are (tenant, session uid, version, last_active_at, agent key, session key): the last two
    are empty where no command names the session. Where one does, agent and session have to be
    there, and enabled. And the database's time has to be near what it is taken for.
    """
    rows = key_rows()
    tenant, uid, version, agent_key, session_key = (
        key_part(rows, index, String()) for index in (0, 1, 2, 4, 5)
    )
    head = and_(
        _heads.c.tenant == tenant,
        _heads.c.session_uid == uid,
        row_version(_heads) == version,
        # A database that was set back gives versions a second time.
        _heads.c.last_active_at == key_part(rows, 3, BigInteger()),
    )
    session = and_(_sessions.c.tenant == tenant, _sessions.c.uid == uid)
    agent = and_(_agents.c.tenant == tenant, _agents.c.uid == _sessions.c.agent_uid)
    is_named = and_(
        _sessions.c.key == session_key,
        _sessions.c.deleted_at.is_(None),
        _sessions.c.enabled,
        _agents.c.key == agent_key,
        _agents.c.deleted_at.is_(None),
        _agents.c.enabled,
    )
    heads = (
        select(literal_column("1", Integer).label("locked"))
        .select_from(rows.join(_heads, head).join(_sessions, session).join(_agents, agent))
        .where(or_(agent_key == "", is_named))
    )
    locked, are_all = _are_all(lock_for_update(heads, of=_heads, skip_locked=True))
    late = func.abs(database_now_us() - bindparam("b_now_us", type_=BigInteger))
    is_now = late <= bindparam("b_tolerance_us", type_=BigInteger)
    columns: Sequence[ColumnElement[Any]] = (
        _refused_unless(and_(are_all, is_now)).label("held"),
        database_now_us().label("now_us"),
        transaction_version().label("own_version"),
    )
    return select(*columns).select_from(locked)


def _turns_as_known() -> Select[Any]:
    """Return what locks turns, and fails unless all are there in the version that is known.

    Keys are (tenant, session uid, turn id, version). A turn changes hands without a change of its
    session's head, so that this has to be a later statement than what locks the heads.
    """
    rows = key_rows()
    tenant, uid, id_, version = (key_part(rows, index, String()) for index in range(4))
    turn = and_(
        _turns.c.tenant == tenant,
        _turns.c.session_uid == uid,
        _turns.c.id == id_,
        row_version(_turns) == version,
    )
    turns = select(literal_column("1", Integer).label("locked")).select_from(
        rows.join(_turns, turn)
    )
    locked, are_all = _are_all(lock_for_update(turns, of=_turns, skip_locked=True))
    return select(_refused_unless(are_all).label("held")).select_from(locked)


HEADS_AS_KNOWN = _heads_as_known()
TURNS_AS_KNOWN = _turns_as_known()
TURN_COLUMNS = (
    "status",
    "first_sequence",
    "last_sequence",
    "pending_calls",
    "pending_until",
    "attempt",
    "error",
    "input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "open_calls",
    "taken_sequence",
    "steered_sequence",
    "lease_owner",
    "lease_until",
    "lease_address",
    "fence",
    "started_at",
    "ended_at",
)
INSERT_EVENTS = insert(_events)
INSERT_CLAIMS = insert(_claims)
INSERT_TURNS = insert(_turns)
INSERT_ARTIFACTS = insert(tables.artifacts)
UPDATE_TURN = (
    update(_turns)
    .where(
        _turns.c.tenant == bindparam("b_tenant"),
        _turns.c.session_uid == bindparam("b_session_uid"),
        _turns.c.id == bindparam("b_id"),
    )
    .values({name: bindparam(name) for name in TURN_COLUMNS})
)
HEAD_COLUMNS = (
    "last_sequence",
    "last_event_at",
    "last_active_at",
    "status",
    "unfinished_turn_id",
    "queued_turns",
    "turn_count",
    "input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "artifact_files",
    "artifact_bytes",
    "expire_at",
    "alteration_count",
)
UPDATE_HEAD = (
    update(_heads)
    .where(
        _heads.c.tenant == bindparam("b_tenant"),
        _heads.c.session_uid == bindparam("b_session_uid"),
    )
    .values({name: bindparam(name) for name in HEAD_COLUMNS})
)
