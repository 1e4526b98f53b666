"""Lists by creation: every row once, in order, however it is cut into pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from hansard_server.repository.api import CreationScan, Position, ReadTx, Store, WriteTx
from tests.support.records import (
    AGENT,
    SESSION,
    TENANT,
    artifact,
    session,
    with_artifacts,
    with_session,
)

# Several rows were made at the same time: there the uid decides.
TIMES = [10, 20, 20, 20, 30, 40, 40, 50]
Place = tuple[int, str]
Listing = Callable[[ReadTx, CreationScan], Sequence[Place]]


def list_agents(tx: ReadTx, scan: CreationScan) -> Sequence[Place]:
    return [(a.created_at_us, a.uid) for a in tx.scan_agents(TENANT, scan)]


def list_sessions(tx: ReadTx, scan: CreationScan) -> Sequence[Place]:
    found = tx.scan_sessions(TENANT, AGENT.uid, scan)
    assert all(view.record.agent_key == AGENT.key for view in found)
    return [(view.record.created_at_us, view.record.uid) for view in found]


def list_artifacts(tx: ReadTx, scan: CreationScan) -> Sequence[Place]:
    found = tx.scan_artifacts(TENANT, SESSION.uid, scan)
    return [(record.created_at_us, record.id) for record in found]


async def fill_agents(store: Store) -> None:
    def decide(tx: WriteTx) -> None:
        for number, time in enumerate(TIMES):
            made = replace(AGENT, uid=f"uid-{number}", key=f"key-{number}", created_at_us=time)
            tx.insert_agent(made, None)
            tx.insert_agent(replace(made, tenant="other"), None)
        tx.insert_agent(replace(AGENT, uid="uid-deleted", created_at_us=25), None)
        tx.delete_agent(TENANT, "uid-deleted", 99)

    await store.write(decide)


async def fill_sessions(store: Store) -> None:
    def decide(tx: WriteTx) -> None:
        tx.insert_agent(AGENT, None)
        tx.insert_agent(replace(AGENT, uid="another", key="another"), None)
        for number, time in enumerate(TIMES):
            made = session(number, uid=f"uid-{number}", created_at_us=time)
            tx.insert_session(made, None)
            tx.insert_session(replace(made, uid=f"other-{number}", agent_uid="another"), None)
        tx.insert_session(session(99, uid="uid-deleted", created_at_us=25), None)
        tx.delete_session(TENANT, "uid-deleted", 99)

    await store.write(decide)


async def fill_artifacts(store: Store) -> None:
    await with_session(store)
    made = [artifact(n, id=f"uid-{n}", created_at_us=time) for n, time in enumerate(TIMES)]
    elsewhere = [replace(record, session_uid="elsewhere") for record in made]
    await with_artifacts(store, made + elsewhere)


async def read_page(store: Store, listing: Listing, scan: CreationScan) -> Sequence[Place]:
    return await store.read(lambda tx: listing(tx, scan))


CASES = pytest.mark.parametrize(
    ("fill", "listing"),
    [
        pytest.param(fill_agents, list_agents, id="agents"),
        pytest.param(fill_sessions, list_sessions, id="sessions"),
        pytest.param(fill_artifacts, list_artifacts, id="artifacts"),
    ],
)
ALL = [(time, f"uid-{number}") for number, time in enumerate(TIMES)]


@CASES
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 8, 9])
async def test_pages_together_are_the_list(
    store: Store,
    fill: Callable[[Store], Awaitable[None]],
    listing: Listing,
    *,
    descending: bool,
    limit: int,
) -> None:
    await fill(store)
    pages: list[Place] = []
    after = None
    for _ in range(len(ALL) + 1):
        scan = CreationScan(limit=limit, after=after, descending=descending)
        page = await read_page(store, listing, scan)
        assert len(page) <= limit
        pages.extend(page)
        if not page:
            break
        after = Position(*page[-1])

    assert pages == (ALL[::-1] if descending else ALL)


@CASES
@pytest.mark.parametrize(
    ("since", "before"), [(20, None), (None, 40), (20, 40), (21, 40), (40, 40), (99, None)]
)
async def test_bounds_take_in_the_lower_and_leave_out_the_upper(
    store: Store,
    fill: Callable[[Store], Awaitable[None]],
    listing: Listing,
    since: int | None,
    before: int | None,
) -> None:
    await fill(store)
    scan = CreationScan(limit=100, created_from_us=since, created_before_us=before)

    found = await read_page(store, listing, scan)

    assert found == [
        place for place in ALL if (since or 0) <= place[0] < (1_000 if before is None else before)
    ]


async def test_sessions_of_a_deleted_agent_are_not_listed(store: Store) -> None:
    await fill_sessions(store)
    await store.write(lambda tx: tx.delete_agent(TENANT, AGENT.uid, 99))

    assert await store.read(lambda tx: list_sessions(tx, CreationScan(limit=10))) == []
