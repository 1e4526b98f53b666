"""Agents: found by key while they live, by claim and uid as long as their row lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from hansard_server.domain.errors import AgentNotFound
from hansard_server.domain.records import Claimed
from hansard_server.repository.api import Store, WriteTx
from tests.support.records import AGENT, CLAIM, TENANT


async def test_agent_comes_back_as_it_was_written(store: Store) -> None:
    agent = replace(AGENT, name="Ünïcode ✓ 𝄞 'quoted' %s \\", metadata=bytes(range(256)))
    await store.write(lambda tx: tx.insert_agent(agent, None))

    assert await store.read(lambda tx: tx.get_agent(TENANT, AGENT.key)) == agent
    assert await store.read(lambda tx: tx.get_agent_by_uid(TENANT, AGENT.uid)) == agent


@pytest.mark.parametrize(("tenant", "key"), [("other", AGENT.key), (TENANT, "Support")])
async def test_agent_of_another_tenant_or_key_is_not_found(
    store: Store, tenant: str, key: str
) -> None:
    await store.write(lambda tx: tx.insert_agent(AGENT, CLAIM))

    with pytest.raises(AgentNotFound):
        await store.read(lambda tx: tx.get_agent(tenant, key))
    with pytest.raises(AgentNotFound):
        await store.read(lambda tx: tx.get_agent_by_uid("other", AGENT.uid))
    assert await store.read(lambda tx: tx.find_agent_claim("other", CLAIM.request_id)) is None


async def test_update_replaces_what_callers_set(store: Store) -> None:
    changed = replace(AGENT, name="New", enabled=False, etag="etag-2", updated_at_us=5_000)
    await store.write(lambda tx: tx.insert_agent(AGENT, None))

    await store.write(lambda tx: tx.update_agent(changed))

    assert await store.read(lambda tx: tx.get_agent(TENANT, AGENT.key)) == changed


async def test_claim_answers_with_the_agent_as_it_was_made(store: Store) -> None:
    await store.write(lambda tx: tx.insert_agent(AGENT, CLAIM))
    first = Claimed(CLAIM.fingerprint, AGENT)
    assert await store.read(lambda tx: tx.find_agent_claim(TENANT, CLAIM.request_id)) == first

    def change(tx: WriteTx) -> None:
        agent = tx.get_agent(TENANT, AGENT.key)
        tx.update_agent(replace(agent, name=agent.name + "!", configuration=b"\xff"))

    await store.write(change)
    await store.write(change)
    await store.write(lambda tx: tx.delete_agent(TENANT, AGENT.uid, 9_000))

    assert await store.read(lambda tx: tx.find_agent_claim(TENANT, CLAIM.request_id)) == first


async def test_deleted_agent_frees_its_key(store: Store) -> None:
    again = replace(AGENT, uid="agent-uid-2", etag="etag-9")
    await store.write(lambda tx: tx.insert_agent(AGENT, None))
    await store.write(lambda tx: tx.delete_agent(TENANT, AGENT.uid, 9_000))

    with pytest.raises(AgentNotFound):
        await store.read(lambda tx: tx.get_agent(TENANT, AGENT.key))
    with pytest.raises(AgentNotFound):
        await store.write(lambda tx: tx.update_agent(AGENT))
    assert await store.read(lambda tx: tx.get_agent_by_uid(TENANT, AGENT.uid)) == AGENT
    await store.write(lambda tx: tx.insert_agent(again, None))
    assert await store.read(lambda tx: tx.get_agent(TENANT, AGENT.key)) == again


async def test_decision_that_raises_leaves_nothing(store: Store) -> None:
    def decide(tx: WriteTx) -> None:
        tx.insert_agent(AGENT, None)
        raise AgentNotFound("on purpose")

    with pytest.raises(AgentNotFound, match="on purpose"):
        await store.write(decide)
    with pytest.raises(AgentNotFound):
        await store.read(lambda tx: tx.get_agent(TENANT, AGENT.key))


async def test_no_update_is_lost_between_read_and_write(store: Store) -> None:
    await store.write(lambda tx: tx.insert_agent(replace(AGENT, description=""), None))

    def add(letter: str) -> Callable[[WriteTx], None]:
        def decide(tx: WriteTx) -> None:
            agent = tx.get_agent(TENANT, AGENT.key)
            described = agent.description + letter
            tx.update_agent(replace(agent, description=described, etag=f"etag-{described}"))

        return decide

    letters = "abcd"
    await asyncio.gather(*(store.write(add(letter)) for letter in letters))

    agent = await store.read(lambda tx: tx.get_agent(TENANT, AGENT.key))
    assert sorted(agent.description) == list(letters)
