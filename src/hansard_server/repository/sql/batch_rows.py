"""Rows of a batch's tables as what decisions work on, and back."""

from __future__ import annotations

import json
from typing import Any

from hansard_server.domain.records import SessionStatus, Usage
from hansard_server.repository.commands import ClaimScope
from hansard_server.repository.sql import batch_statements as statements
from hansard_server.repository.sql.rows import turn_record, turn_values
from hansard_server.repository.sql.state import Claimed, ClaimKey, Head, HeldTurn, SessionState


def read_head(row: Any) -> Head:
    """Return what a row of `session_heads` says."""
    return Head(
        last_sequence=row.last_sequence,
        last_event_at_us=row.last_event_at,
        last_active_at_us=row.last_active_at,
        status=SessionStatus(row.status),
        unfinished_turn_id=row.unfinished_turn_id,
        queued_turns=row.queued_turns,
        turn_count=row.turn_count,
        usage=Usage(row.input_tokens, row.output_tokens, row.reasoning_tokens),
        artifact_files=row.artifact_files,
        artifact_bytes=row.artifact_bytes,
        tti_minutes=row.tti_minutes,
        alteration_count=row.alteration_count,
    )


def head_update(state: SessionState) -> dict[str, Any]:
    """Return the values of UPDATE_HEAD."""
    head = state.head
    return {
        "b_tenant": state.tenant,
        "b_session_uid": state.uid,
        "last_sequence": head.last_sequence,
        "last_event_at": head.last_event_at_us,
        "last_active_at": head.last_active_at_us,
        "status": int(head.status),
        "unfinished_turn_id": head.unfinished_turn_id,
        "queued_turns": head.queued_turns,
        "turn_count": head.turn_count,
        "input_tokens": head.usage.input_tokens,
        "output_tokens": head.usage.output_tokens,
        "reasoning_tokens": head.usage.reasoning_tokens,
        "artifact_files": head.artifact_files,
        "artifact_bytes": head.artifact_bytes,
        "expire_at": head.expire_at_us,
        "alteration_count": head.alteration_count,
    }


def read_turn(row: Any) -> HeldTurn:
    """Return what a row of `turns` says."""
    return HeldTurn(
        turn_record(row), row.lease_owner, row.lease_until, row.lease_address, row.version
    )


def turn_row(held: HeldTurn) -> dict[str, Any]:
    """Return the values of INSERT_TURNS."""
    return {
        **turn_values(held.record),
        "lease_owner": held.lease_owner,
        "lease_until": held.lease_until_us,
        "lease_address": held.lease_address,
    }


def turn_update(held: HeldTurn) -> dict[str, Any]:
    """Return the values of UPDATE_TURN."""
    row = turn_row(held)
    return {
        "b_tenant": held.record.tenant,
        "b_session_uid": held.record.session_uid,
        "b_id": held.record.id,
        **{name: row[name] for name in statements.TURN_COLUMNS},
    }


def read_claim(row: Any) -> tuple[ClaimKey, Claimed]:
    """Return what a row of `claims` says."""
    events = None if row.events is None else tuple((e[0], e[1]) for e in json.loads(row.events))
    key = (ClaimScope(row.scope), row.request_id)
    return key, Claimed(row.fingerprint, row.turn_id, events)


def claim_row(state: SessionState, key: ClaimKey) -> dict[str, Any]:
    """Return the values of INSERT_CLAIMS."""
    claimed = state.claims[key]
    return {
        "tenant": state.tenant,
        "session_uid": state.uid,
        "scope": int(key[0]),
        "request_id": key[1],
        "fingerprint": claimed.fingerprint,
        "turn_id": claimed.turn_id,
        "events": None
        if claimed.events is None
        else json.dumps(claimed.events, separators=(",", ":")),
    }
