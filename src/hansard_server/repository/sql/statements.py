"""Statements of the reads, built once; parts that other statements are made of."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    or_,
    select,
)

from hansard_server.domain.records import TurnStatus
from hansard_server.repository.sql.engine import database_now_us
from hansard_server.repository.sql.keysets import select_by_keys
from hansard_server.repository.sql.tables import (
    agents,
    artifacts,
    events,
    session_heads,
    sessions,
    turns,
)

INLINE_MAX_BYTES = 16 * 1024
"""Payloads up to this size are read with their rows; larger ones once it is known which fit."""

_TENANT: Any = bindparam("tenant")
_SESSION: Any = bindparam("session_uid")

# In the text rather than as parameters, so that both databases see that partial indexes apply.
QUEUED: Any = literal_column(str(int(TurnStatus.QUEUED)))
RUNNING: Any = literal_column(str(int(TurnStatus.RUNNING)))
REQUIRES_ACTION: Any = literal_column(str(int(TurnStatus.REQUIRES_ACTION)))

AGENT = select(agents).where(
    agents.c.tenant == _TENANT,
    agents.c.key == bindparam("agent_key"),
    agents.c.deleted_at.is_(None),
)
AGENT_BY_UID = select(agents).where(
    agents.c.tenant == _TENANT, agents.c.uid == bindparam("agent_uid")
)
AGENT_CLAIM = select(agents).where(
    agents.c.tenant == _TENANT, agents.c.request_id == bindparam("request_id")
)
AGENTS = select(agents).where(agents.c.tenant == _TENANT, agents.c.deleted_at.is_(None))

_LIVE_SESSION_OF_AGENT = and_(
    sessions.c.tenant == agents.c.tenant,
    sessions.c.agent_uid == agents.c.uid,
    sessions.c.key == bindparam("session_key"),
    sessions.c.deleted_at.is_(None),
)
_HEAD_OF_SESSION = and_(
    session_heads.c.tenant == sessions.c.tenant,
    session_heads.c.session_uid == sessions.c.uid,
)
_HEAD_COLUMNS = [
    session_heads.c.last_sequence,
    session_heads.c.status,
    session_heads.c.unfinished_turn_id,
    session_heads.c.queued_turns,
    session_heads.c.input_tokens,
    session_heads.c.output_tokens,
    session_heads.c.reasoning_tokens,
    session_heads.c.artifact_files,
    session_heads.c.artifact_bytes,
    session_heads.c.expire_at,
    session_heads.c.last_event_at,
]
# One row when there is the agent; its session_uid is NULL when there is no session.
_NAMED = agents.outerjoin(sessions, _LIVE_SESSION_OF_AGENT).outerjoin(
    session_heads, _HEAD_OF_SESSION
)
_NAMED_AGENT = and_(
    agents.c.tenant == _TENANT,
    agents.c.key == bindparam("agent_key"),
    agents.c.deleted_at.is_(None),
)
RESOLVE_SESSION = (
    select(
        agents.c.uid.label("agent_uid"),
        sessions.c.uid.label("session_uid"),
        session_heads.c.last_sequence,
    )
    .select_from(_NAMED)
    .where(_NAMED_AGENT)
)
SESSION = (
    select(*sessions.c, agents.c.key.label("agent_key"), *_HEAD_COLUMNS)
    .select_from(_NAMED)
    .where(_NAMED_AGENT)
)
SESSION_CLAIM = (
    select(*sessions.c, agents.c.key.label("agent_key"))
    .join(agents, and_(agents.c.tenant == sessions.c.tenant, agents.c.uid == sessions.c.agent_uid))
    .where(
        sessions.c.tenant == _TENANT,
        sessions.c.agent_uid == bindparam("agent_uid"),
        sessions.c.request_id == bindparam("request_id"),
    )
)
SESSIONS = (
    select(*sessions.c, agents.c.key.label("agent_key"), *_HEAD_COLUMNS)
    .join(agents, and_(agents.c.tenant == sessions.c.tenant, agents.c.uid == sessions.c.agent_uid))
    .join(session_heads, _HEAD_OF_SESSION)
    .where(
        sessions.c.tenant == _TENANT,
        sessions.c.agent_uid == bindparam("agent_uid"),
        sessions.c.deleted_at.is_(None),
        agents.c.deleted_at.is_(None),
    )
)
SESSION_BY_UID = (
    select(*sessions.c, agents.c.key.label("agent_key"))
    .join(agents, and_(agents.c.tenant == sessions.c.tenant, agents.c.uid == sessions.c.agent_uid))
    .where(
        sessions.c.tenant == _TENANT, sessions.c.uid == _SESSION, sessions.c.deleted_at.is_(None)
    )
)
EXPIRED_SESSIONS = (
    select(session_heads.c.tenant, session_heads.c.session_uid)
    .where(session_heads.c.expire_at <= bindparam("now"), session_heads.c.deleted.is_(False))
    .order_by(session_heads.c.expire_at)
    .limit(bindparam("limit"))
)
HEAD = select(session_heads).where(
    session_heads.c.tenant == _TENANT, session_heads.c.session_uid == _SESSION
)
TAIL = select(session_heads.c.last_sequence, session_heads.c.deleted).where(
    session_heads.c.tenant == _TENANT, session_heads.c.session_uid == _SESSION
)

EVENT = select(events).where(
    events.c.tenant == _TENANT,
    events.c.session_uid == _SESSION,
    events.c.id == bindparam("event_id"),
)


def _first_since() -> Select[Any]:
    """Return the search for the first sequence of [low, high) that is not older than a time.

    Times never decrease with the sequence: half of the span falls away at each step, by a look at
    the primary key. The result is `high` when all are older.
    """
    span = select(
        bindparam("low", type_=BigInteger).label("low"),
        bindparam("high", type_=BigInteger).label("high"),
    ).cte("span", recursive=True)
    middle = (span.c.low + span.c.high) // 2
    older = events.c.created_at < bindparam("time", type_=BigInteger)
    half = (
        select(
            case((older, middle + 1), else_=span.c.low),
            case((older, span.c.high), else_=middle),
        )
        .select_from(
            span.join(
                events,
                and_(
                    events.c.tenant == _TENANT,
                    events.c.session_uid == _SESSION,
                    events.c.sequence == middle,
                ),
            )
        )
        .where(span.c.low < span.c.high)
    )
    return select(func.max(span.union_all(half).c.low))


FIRST_SINCE = _first_since()
EVENT_PAYLOADS = select(events.c.sequence, events.c.payload).where(
    events.c.tenant == _TENANT,
    events.c.session_uid == _SESSION,
    events.c.sequence.in_(bindparam("sequences", expanding=True)),
)


@cache
def event_page(
    *, descending: bool, include_hidden: bool, of_types: bool, of_turn: bool
) -> Select[Any]:
    """Return the select of events between two sequences, both exclusive; columns as in EventRow.

    Large payloads come as NULL.
    """
    inline = case((events.c.size_bytes <= INLINE_MAX_BYTES, events.c.payload), else_=null())
    page = select(
        events.c.sequence,
        events.c.id,
        events.c.type,
        events.c.turn_id,
        events.c.created_at,
        events.c.hide_reason,
        events.c.deleted_at,
        events.c.tool_call_id,
        events.c.size_bytes,
        inline.label("payload"),
    ).where(
        events.c.tenant == _TENANT,
        events.c.session_uid == _SESSION,
        events.c.sequence > bindparam("above"),
        events.c.sequence < bindparam("below"),
    )
    if not include_hidden:
        page = page.where(events.c.hide_reason == 0, events.c.deleted_at.is_(None))
    if of_types:
        page = page.where(events.c.type.in_(bindparam("types", expanding=True)))
    if of_turn:
        page = page.where(events.c.turn_id == bindparam("turn_id"))
    order = events.c.sequence.desc() if descending else events.c.sequence.asc()
    return page.order_by(order).limit(bindparam("limit"))


TURN = select(turns).where(
    turns.c.tenant == _TENANT, turns.c.session_uid == _SESSION, turns.c.id == bindparam("turn_id")
)
LAST_TURN = select(func.max(turns.c.number)).where(
    turns.c.tenant == _TENANT, turns.c.session_uid == _SESSION
)
TURNS_BY_NUMBER = select(turns).where(
    turns.c.tenant == _TENANT,
    turns.c.session_uid == _SESSION,
    turns.c.number.in_(bindparam("numbers", expanding=True)),
)


@cache
def turn_sizes(*, descending: bool, of_statuses: bool) -> Select[Any]:
    """Return the select of the turns between two numbers: what they are numbered, how large."""
    size: Any = func.length(turns.c.input)
    size += func.length(turns.c.pending_calls) + func.length(turns.c.error)
    sizes = select(turns.c.number, size.label("size_bytes")).where(
        turns.c.tenant == _TENANT,
        turns.c.session_uid == _SESSION,
        turns.c.number >= bindparam("low"),
        turns.c.number <= bindparam("high"),
    )
    if of_statuses:
        sizes = sizes.where(turns.c.status.in_(bindparam("statuses", expanding=True)))
    order = turns.c.number.desc() if descending else turns.c.number.asc()
    return sizes.order_by(order).limit(bindparam("limit"))


QUEUE_POSITION = select(func.count()).where(
    turns.c.tenant == _TENANT,
    turns.c.session_uid == _SESSION,
    turns.c.status == QUEUED,
    turns.c.number <= bindparam("number"),
)
PULSES = select_by_keys(
    session_heads.c.tenant,
    session_heads.c.session_uid,
    session_heads.c.last_sequence,
    session_heads.c.deleted,
    session_heads.c.alteration_count,
    session_heads.c.turn_count,
    session_heads.c.queued_turns,
    session_heads.c.unfinished_turn_id,
    turns.c.status.label("turn_status"),
    turns.c.fence,
    turns.c.lease_address,
    source=session_heads.outerjoin(
        turns,
        and_(
            turns.c.tenant == session_heads.c.tenant,
            turns.c.session_uid == session_heads.c.session_uid,
            turns.c.id == session_heads.c.unfinished_turn_id,
        ),
    ),
    keys=(session_heads.c.tenant, session_heads.c.session_uid),
)
TURNS_BY_ID = select_by_keys(*turns.c, source=turns, keys=(turns.c.id,)).where(
    turns.c.tenant == _TENANT, turns.c.session_uid == _SESSION
)
ALTERED_EVENTS = (
    select(events.c.alteration, events.c.id)
    .where(
        events.c.tenant == _TENANT,
        events.c.session_uid == _SESSION,
        events.c.alteration > bindparam("after_count"),
    )
    .order_by(events.c.alteration)
    .limit(bindparam("limit"))
)
RUNNING_TURNS = (
    select(turns)
    .where(turns.c.status == RUNNING)
    .order_by(turns.c.lease_until)
    .limit(bindparam("limit"))
)
ABANDONED_TURNS = RUNNING_TURNS.where(
    or_(turns.c.lease_until.is_(None), turns.c.lease_until <= database_now_us())
)
TURNS_OF_OWNER = RUNNING_TURNS.where(turns.c.lease_owner == bindparam("owner"))
_LEASE_END = select(turns.c.lease_until - database_now_us()).where(turns.c.status == RUNNING)
LEASE_GIVEN_UP = _LEASE_END.where(turns.c.lease_until.is_(None)).limit(1)
NEXT_LEASE_END = (
    _LEASE_END.where(turns.c.lease_until.is_not(None), turns.c.lease_owner != bindparam("owner"))
    .order_by(turns.c.lease_until)
    .limit(1)
)
OWNED_TURNS = select_by_keys(
    turns.c.tenant,
    turns.c.session_uid,
    turns.c.id,
    source=turns,
    keys=(turns.c.tenant, turns.c.session_uid, turns.c.id),
).where(turns.c.status == RUNNING, turns.c.lease_owner == bindparam("owner"))
IDLE_QUEUES = (
    select(turns.c.tenant, turns.c.session_uid)
    .distinct()
    .join(
        session_heads,
        and_(
            session_heads.c.tenant == turns.c.tenant,
            session_heads.c.session_uid == turns.c.session_uid,
        ),
    )
    .where(
        turns.c.status == QUEUED,
        session_heads.c.unfinished_turn_id.is_(None),
        session_heads.c.deleted.is_(False),
    )
    .limit(bindparam("limit"))
)

EXPIRED_CALLS = (
    select(turns.c.tenant, turns.c.session_uid, turns.c.id)
    .where(turns.c.status == REQUIRES_ACTION, turns.c.pending_until <= database_now_us())
    .order_by(turns.c.pending_until)
    .limit(bindparam("limit"))
)

ARTIFACTS = select(artifacts).where(
    artifacts.c.tenant == _TENANT, artifacts.c.session_uid == _SESSION
)
ARTIFACTS_BY_ID = select_by_keys(
    *artifacts.c,
    source=artifacts,
    keys=(artifacts.c.tenant, artifacts.c.session_uid, artifacts.c.id),
)
ARTIFACT = ARTIFACTS.where(artifacts.c.id == bindparam("artifact_id"))
EXPIRED_ARTIFACTS = (
    select(artifacts.c.tenant, artifacts.c.session_uid, artifacts.c.id)
    .where(artifacts.c.expire_at.is_not(None), artifacts.c.expire_at <= bindparam("now"))
    .order_by(artifacts.c.expire_at)
    .limit(bindparam("limit"))
)
ARTIFACT_TOTALS = select(session_heads.c.artifact_files, session_heads.c.artifact_bytes).where(
    session_heads.c.tenant == _TENANT, session_heads.c.session_uid == _SESSION
)
