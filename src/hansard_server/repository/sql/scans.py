"""Scans by creation: the one order of every list of agents, sessions, artifacts and keys."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, tuple_

from hansard_server.repository.api import CreationScan


def by_creation(
    select: Select[Any], scan: CreationScan, created_at: ColumnElement[int], uid: ColumnElement[str]
) -> Select[Any]:
    """Return the select in the scan's order, from its position on, inside its bounds."""
    if scan.after is not None:
        # As row values, which an index serves where two comparisons joined by OR read too much.
        here, there = tuple_(created_at, uid), (scan.after.created_at_us, scan.after.uid)
        select = select.where(here < there if scan.descending else here > there)
    if scan.created_from_us is not None:
        select = select.where(created_at >= scan.created_from_us)
    if scan.created_before_us is not None:
        select = select.where(created_at < scan.created_before_us)
    order = (created_at.desc(), uid.desc()) if scan.descending else (created_at, uid)
    return select.order_by(*order).limit(scan.limit)
