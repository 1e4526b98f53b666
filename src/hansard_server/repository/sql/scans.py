"""Scans by creation: the one order of every list of agents, sessions, artifacts and keys.

The statement is the same for all scans of a kind, so that it is made and compiled once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, tuple_

from hansard_server.repository.api import CreationScan


def by_creation(
    select: Select[Any], scan: CreationScan, created_at: ColumnElement[int], uid: ColumnElement[str]
) -> Select[Any]:
    """Return the select in the scan's order, from its position on, inside its bounds.

    `select` and the columns are ones that last. Its parameters are `scan_values`, and its own.
    """
    return _by_creation(
        select,
        created_at,
        uid,
        descending=scan.descending,
        after=scan.after is not None,
        created_from=scan.created_from_us is not None,
        created_before=scan.created_before_us is not None,
    )


def scan_values(scan: CreationScan) -> dict[str, Any]:
    """Return the parameters of a scan's bounds."""
    values: dict[str, Any] = {"scan_limit": scan.limit}
    if scan.after is not None:
        values |= {"scan_after_at": scan.after.created_at_us, "scan_after_uid": scan.after.uid}
    if scan.created_from_us is not None:
        values["scan_from"] = scan.created_from_us
    if scan.created_before_us is not None:
        values["scan_before"] = scan.created_before_us
    return values


@cache
def _by_creation(
    select: Select[Any],
    created_at: ColumnElement[int],
    uid: ColumnElement[str],
    *,
    descending: bool,
    after: bool,
    created_from: bool,
    created_before: bool,
) -> Select[Any]:
    if after:
        # As row values, which an index serves where two comparisons joined by OR read too much.
        here = tuple_(created_at, uid)
        there = tuple_(
            bindparam("scan_after_at", type_=created_at.type),
            bindparam("scan_after_uid", type_=uid.type),
        )
        select = select.where(here < there if descending else here > there)
    if created_from:
        select = select.where(created_at >= bindparam("scan_from"))
    if created_before:
        select = select.where(created_at < bindparam("scan_before"))
    order = (created_at.desc(), uid.desc()) if descending else (created_at, uid)
    return select.order_by(*order).limit(bindparam("scan_limit"))
