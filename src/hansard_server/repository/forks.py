"""Forks: what a session is copied from another by, and what comes of it.

A fork is planned in one read, which fixes its moment, and copied in pieces, each a transaction of
its own. Until `finish_fork` the copies hang on a uid that no session has; a row of its own tells of
them, so that what nobody works on any more is purged.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import field

from hansard_server.domain.records import SessionRef, TurnRecord, Usage
from hansard_server.domain.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedTurn:
    """A turn of which events are copied; sequences are those of the copies.

    `size_bytes` is that of its first copied event, which is about as large as its input.
    """

    id: str
    number: int
    first_sequence: int
    last_sequence: int
    first_event_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCopy:
    """A copied tool_input, by the sequence of its copy, whose output is not copied."""

    sequence: int
    turn_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPlan:
    """What is copied: the visible events of a source up to a sequence, at one moment.

    Attributes:
        source: the source.
        source_through: the sequence of the source up to which events are copied.
        sequences: of the source's events, in order: the n-th becomes the event n.
        ends: where each piece ends in `sequences`; a piece is bounded by count and by bytes.
        mentioning: places in the fork, in order, of events that may mention artifacts; empty when
            the source has none.
        turns: those that have ended within the copied part, in order.
        cut_turn: the last one, when it is not whole, with what the source says of it.
        open_calls: the copied calls without an output, by tool_call_id, in order.
        artifact_ids: all of the source.
        last_event_id: in the source; empty when there is none.
    """

    source: SessionRef
    source_through: int = 0
    sequences: array[int] = field(default_factory=lambda: array("q"))
    ends: Sequence[int] = ()
    mentioning: array[int] = field(default_factory=lambda: array("q"))
    turns: Sequence[ForkedTurn] = ()
    cut_turn: tuple[ForkedTurn, TurnRecord] | None = None
    open_calls: dict[str, OpenCopy] = field(default_factory=dict)
    artifact_ids: frozenset[str] = frozenset()
    last_event_id: str = ""
    last_event_at_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRef:
    """A fork that is being made: the uid that its session will have, and where it comes from.

    It counts as alive for `lease_s` after its last piece, by the database's clock.
    """

    tenant: str
    uid: str
    source_uid: str
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkTotals:
    """What a fork begins with."""

    last_sequence: int
    last_event_at_us: int
    turn_count: int
    usage: Usage
    artifact_files: int
    artifact_bytes: int


class SourceChanged(Exception):  # noqa: N818 - a state of affairs
    """What was planned to be copied was deleted before it was: plan again, at a later moment."""


class ForkLost(Exception):  # noqa: N818 - a state of affairs
    """Nobody had worked on the fork for too long: it was given up, and its copies are purged."""
