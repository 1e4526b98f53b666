"""Keys, tenants and secrets: found by id or claim, of one tenant alone, made once by many."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import Engine, select

from hansard_server.domain.access import ApiKeyRecord, Grant, Role
from hansard_server.domain.errors import ApiKeyNotFound
from hansard_server.domain.records import Claimed
from hansard_server.repository.api import CreationScan, Position, Store, WriteTx
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.tables import roles
from tests.support.records import AGENT, CLAIM, TENANT

KEY = ApiKeyRecord(
    tenant=TENANT,
    id="key_1",
    name="Ünïcode ✓",
    secret_sha256=bytes(range(32)),
    grants=(Grant(Role.ADMINISTRATOR), Grant(Role.AGENT_USER, AGENT.uid, AGENT.key)),
    created_at_us=1_000,
    expires_at_us=9_000,
)


async def insert(store: Store, *keys: ApiKeyRecord) -> None:
    def decide(tx: WriteTx) -> None:
        tx.insert_agent(AGENT, None)
        for key in keys:
            tx.insert_api_key(key, None)

    await store.write(decide)


async def test_key_comes_back_as_it_was_written(store: Store) -> None:
    await insert(store, KEY)
    assert await store.read(lambda tx: tx.get_api_key(TENANT, KEY.id)) == KEY
    assert await store.read(lambda tx: tx.find_api_keys([KEY.id, "key_2"])) == {KEY.id: KEY}
    assert await store.read(lambda tx: tx.find_api_keys([])) == {}


async def test_key_of_another_tenant_is_not_found(store: Store) -> None:
    await insert(store, KEY)
    await store.write(lambda tx: tx.insert_api_key(replace(KEY, id="key_2", grants=()), CLAIM))
    with pytest.raises(ApiKeyNotFound):
        await store.read(lambda tx: tx.get_api_key("other", KEY.id))
    with pytest.raises(ApiKeyNotFound):
        await store.write(lambda tx: tx.revoke_api_key("other", KEY.id, 5_000))
    await store.write(lambda tx: tx.note_api_key_use({("other", KEY.id): 5_000}))
    assert await store.read(lambda tx: tx.find_api_key_claim("other", CLAIM.request_id)) is None
    assert await store.read(lambda tx: tx.scan_api_keys("other", CreationScan(limit=9))) == []
    assert await store.read(lambda tx: tx.get_agents("other", [AGENT.uid])) == []
    assert await store.read(lambda tx: tx.get_api_key(TENANT, KEY.id)) == KEY


async def test_claim_finds_the_key_as_it_is(store: Store) -> None:
    key = replace(KEY, grants=())
    await store.write(lambda tx: tx.insert_api_key(key, CLAIM))
    await store.write(lambda tx: tx.revoke_api_key(TENANT, key.id, 5_000))
    found = await store.read(lambda tx: tx.find_api_key_claim(TENANT, CLAIM.request_id))
    assert found == Claimed(CLAIM.fingerprint, replace(key, revoked_at_us=5_000))


async def test_key_is_revoked_once(store: Store) -> None:
    await insert(store, KEY)
    for now_us in (5_000, 6_000):
        key = await store.write(lambda tx, now_us=now_us: tx.revoke_api_key(TENANT, KEY.id, now_us))  # type: ignore[misc]
        assert key == replace(KEY, revoked_at_us=5_000)
    with pytest.raises(ApiKeyNotFound):
        await store.write(lambda tx: tx.revoke_api_key(TENANT, "key_2", 5_000))


async def test_last_use_never_goes_back(store: Store) -> None:
    await insert(store, KEY)
    for used_at_us, expected in ((5_000, 5_000), (4_000, 5_000), (6_000, 6_000)):
        used = {(TENANT, KEY.id): used_at_us, (TENANT, "key_gone"): used_at_us}
        await store.write(lambda tx, used=used: tx.note_api_key_use(used))  # type: ignore[misc]
        key = await store.read(lambda tx: tx.get_api_key(TENANT, KEY.id))
        assert key.last_used_at_us == expected


async def test_role_ends_with_its_agent(store: Store, engine: Engine) -> None:
    await insert(store, KEY)
    await store.write(lambda tx: tx.delete_agent(TENANT, AGENT.uid, 5_000))
    again = replace(AGENT, uid="agent-uid-2", etag="etag-2")
    await store.write(lambda tx: tx.insert_agent(again, None))
    key = await store.read(lambda tx: tx.get_api_key(TENANT, KEY.id))
    assert key.grants == (Grant(Role.ADMINISTRATOR),)
    agents = await store.read(lambda tx: tx.get_agents(TENANT, [AGENT.uid, again.uid]))
    assert agents == [again]
    with engine.connect() as connection:
        left = connection.execute(select(roles.c.agent_uid)).scalars().all()
    assert left == [""]


async def test_keys_are_scanned_by_creation(store: Store) -> None:
    keys = [replace(KEY, id=f"key_{n}", created_at_us=n // 2) for n in range(5)]
    await insert(store, *keys)
    scan = CreationScan(limit=2, descending=True)
    assert await store.read(lambda tx: tx.scan_api_keys(TENANT, scan)) == [keys[4], keys[3]]
    after = replace(scan, after=Position(keys[3].created_at_us, keys[3].id), limit=9)
    rest = await store.read(lambda tx: tx.scan_api_keys(TENANT, after))
    assert rest == [keys[2], keys[1], keys[0]]


async def test_tenant_and_secret_are_made_once_by_two_stores(store: Store, url: str) -> None:
    stores = [store]
    if url.startswith("postgresql"):
        stores.append(await SqlStore.open(url))
    made = await asyncio.gather(
        *(one.write(lambda tx: tx.insert_tenant("new", 1)) for one in stores * 8)
    )
    secrets = await asyncio.gather(
        *(
            one.write(lambda tx, n=n: tx.ensure_secret("s", bytes([n])))  # type: ignore[misc]
            for n, one in enumerate(stores * 8)
        )
    )
    assert made.count(True) == 1
    assert len(set(secrets)) == 1
    assert await store.read(lambda tx: tx.has_tenant("new"))
    assert not await store.read(lambda tx: tx.has_tenant("other"))
    for extra in stores[1:]:
        await extra.close()
