"""Lists: pages, what ends them, filters, and tokens that nobody else can make."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    paging_pb2,
    session_pb2,
    session_service_pb2,
    turn_pb2,
    turn_service_pb2,
)
from hansard_server.domain.access import Caller
from hansard_server.domain.limits import MIB, PAGE_MAX_BYTES
from tests.support.databases import Databases
from tests.support.server import Failure, Running, failure, make_settings, running_server
from tests.support.talk import Talk
from tests.wire.conftest import agent_request

STRANGER = Caller(tenant="other", administrator=True)
ListAgents = agent_service_pb2.ListAgentsRequest
ListSessions = session_service_pb2.ListSessionsRequest
Create = session_service_pb2.CreateSessionRequest


async def make_sessions(hansard: Running, count: int, **fields: object) -> list[str]:
    """Create an agent `a` with so many sessions; return their keys in the order of creation."""
    await hansard.agents.CreateAgent(agent_request(key="a"))
    for number in range(count):
        request = Create(agent_key="a", key=f"s{number}", name=f"session {number}", **fields)
        await hansard.sessions.CreateSession(request)
    return [f"s{number}" for number in range(count)]


async def pages(
    hansard: Running, request: ListSessions
) -> AsyncIterator[list[session_pb2.Session]]:
    """Yield the pages of the list, to its end."""
    while True:
        page = await hansard.sessions.ListSessions(request)
        yield list(page.sessions)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def list_keys(hansard: Running, request: ListSessions) -> list[str]:
    """Return the keys of the whole list."""
    return [session.key async for page in pages(hansard, request) for session in page]


@pytest.mark.parametrize("order", ["ASCENDING", "DESCENDING", "UNSPECIFIED"])
async def test_pages_together_are_the_list(hansard: Running, order: str) -> None:
    made = await make_sessions(hansard, 7)
    if order != "ASCENDING":
        made.reverse()
    for page_size, lengths in ((3, [3, 3, 1]), (7, [7]), (6, [6, 1]), (8, [7]), (1, [1] * 7)):
        request = ListSessions(
            agent_key="a",
            page_size=page_size,
            order=paging_pb2.SortOrder.Value(f"SORT_ORDER_{order}"),
        )
        found = [page async for page in pages(hansard, request)]
        assert [len(page) for page in found] == lengths
        assert [session.key for page in found for session in page] == made


async def test_empty_list_is_one_empty_page(hansard: Running) -> None:
    listed = await hansard.agents.ListAgents(ListAgents())
    assert (len(listed.agents), listed.next_page_token) == (0, "")


async def test_page_size_may_change_between_pages(plain: Running) -> None:
    made = await make_sessions(plain, 5)
    first = await plain.sessions.ListSessions(ListSessions(agent_key="a", page_size=1))
    second = await plain.sessions.ListSessions(
        ListSessions(agent_key="a", page_size=9, page_token=first.next_page_token)
    )
    assert [s.key for s in (*first.sessions, *second.sessions)] == made[::-1]


async def test_page_size_has_a_default_and_a_most(
    plain: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hansard_server.resources.paging.PAGE_DEFAULT_ITEMS", 2)
    monkeypatch.setattr("hansard_server.resources.paging.PAGE_MAX_ITEMS", 3)
    await make_sessions(plain, 5)
    for page_size, length in ((0, 2), (3, 3), (4, 3), (2**31 - 1, 3)):
        page = await plain.sessions.ListSessions(ListSessions(agent_key="a", page_size=page_size))
        assert len(page.sessions) == length


async def test_page_ends_by_its_bytes_with_at_least_one_item(plain: Running) -> None:
    tool = agent_pb2.ToolConfiguration(artifact_read={})
    tool.argument_override["artifact_id"] = "x" * 60_000
    tools = {f"t{number}": tool for number in range(40)}
    for number in range(3):
        await plain.agents.CreateAgent(agent_request(key=f"k{number}", tool_configurations=tools))
    token, found = "", []
    while True:
        page = await plain.agents.ListAgents(ListAgents(page_token=token))
        assert page.ByteSize() <= PAGE_MAX_BYTES
        assert len(page.agents) == 1
        found += [agent.key for agent in page.agents]
        token = page.next_page_token
        if not token:
            break
    assert found == ["k2", "k1", "k0"]


async def test_call_examines_a_bounded_number_of_rows(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hansard_server.resources.paging.SCAN_MAX_ROWS", 4)
    await make_sessions(hansard, 9)
    request = ListSessions(agent_key="a", filter="session 0$")
    found = [[s.key for s in page] async for page in pages(hansard, request)]
    assert found == [[], [], ["s0"]]


async def test_filters_hold_together(hansard: Running) -> None:
    await hansard.agents.CreateAgent(agent_request(key="a"))
    numbers = {"one": 1, "half": 1.5}
    for key, fields in {
        "s1": {"name": "Order 12", "metadata": {"n": 1, "deep": {"a": [1, numbers]}}},
        "s2": {"name": "x", "description": "about order 12", "metadata": {"n": 1.0}},
        "s3": {"name": "ORDER 12", "metadata": {"n": "1"}, "enabled": False},
        "s4": {"name": "Order 1", "metadata": {"n": 1, "deep": {"a": [1, {"one": 1}]}}},
    }.items():
        await hansard.sessions.CreateSession(Create(agent_key="a", key=key, **fields))

    async def found(**conditions: object) -> set[str]:
        request = ListSessions(agent_key="a", **conditions)
        return set(await list_keys(hansard, request))

    assert await found(filter="rder 12") == {"s1", "s2"}
    assert await found(filter="(?i)ORDER 12") == {"s1", "s2", "s3"}
    assert await found(filter="^Order") == {"s1", "s4"}
    assert await found(metadata={"n": 1}) == {"s1", "s2", "s4"}
    assert await found(metadata={"n": "1"}) == {"s3"}
    assert await found(metadata={"n": None}) == set()
    assert await found(metadata={"deep": {"a": [1, numbers]}}) == {"s1"}
    assert await found(metadata={"deep": {"a": [1, {"half": 1.5, "one": 1}]}, "n": 1}) == {"s1"}
    assert await found(enabled=False) == {"s3"}
    assert await found(enabled=True, filter="12", metadata={"n": 1}) == {"s1", "s2"}
    assert await found(metadata={}) == {"s1", "s2", "s3", "s4"}


async def test_created_range_includes_its_start_and_not_its_end(hansard: Running) -> None:
    await make_sessions(hansard, 3)
    listed = await hansard.sessions.ListSessions(ListSessions(agent_key="a", order=1))
    _first, second, third = (session.created_at for session in listed.sessions)
    request = ListSessions(agent_key="a", created_at_or_after=second, created_before=third)
    assert await list_keys(hansard, request) == ["s1"]
    past = Timestamp(seconds=second.seconds, nanos=second.nanos + 1)
    request = ListSessions(agent_key="a", created_at_or_after=past)
    assert await list_keys(hansard, request) == ["s2"]
    request = ListSessions(agent_key="a", created_before=past)
    assert await list_keys(hansard, request) == ["s1", "s0"]


async def test_agents_are_filtered_likewise(hansard: Running) -> None:
    await hansard.agents.CreateAgent(agent_request(key="a", metadata={"x": True}))
    await hansard.agents.CreateAgent(agent_request(key="b", name="Sales", enabled=False))
    for conditions, keys in (
        ({}, ["b", "a"]),
        ({"metadata": {"x": True}}, ["a"]),
        ({"filter": "Sal"}, ["b"]),
        ({"enabled": False}, ["b"]),
        ({"order": paging_pb2.SORT_ORDER_ASCENDING}, ["a", "b"]),
    ):
        listed = await hansard.agents.ListAgents(ListAgents(**conditions))
        assert [agent.key for agent in listed.agents] == keys


async def test_hard_pattern_on_long_texts_answers_at_once(plain: Running) -> None:
    await plain.agents.CreateAgent(
        agent_request(key="a", name="a" * 254 + "!", description="a" * 4_095 + "!")
    )
    for pattern in ("(a+)+$", "^(a|a)*$", "(.*)*x" + "(a*)*" * 100):
        started = time.monotonic()
        assert not (await plain.agents.ListAgents(ListAgents(filter=pattern))).agents
        # A search that tries all ways would not end today.
        assert time.monotonic() - started < 10


async def test_filter_that_is_slow_to_decide_ends_the_page(
    plain: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hansard_server.resources.paging._MATCHING_MAX_S", 0.0)
    await make_sessions(plain, 3)
    request = ListSessions(agent_key="a", filter="session [02]")
    found = [[s.key for s in page] async for page in pages(plain, request)]
    assert found[:3] == [["s2"], [], ["s0"]]


async def test_turns_come_in_pages_by_status(hansard: Running) -> None:
    talk = await Talk(hansard).begin([{"agent_output": {"content": "ok"}}])
    made = [(await talk.send(f"{number}"))[0].turn_id for number in range(3)]
    _, held = await talk.hold()
    completed, running = turn_pb2.TURN_STATUS_COMPLETED, turn_pb2.TURN_STATUS_RUNNING
    for fields, ids in (
        ({}, [*made, held]),
        ({"order": paging_pb2.SORT_ORDER_DESCENDING}, [held, *made[::-1]]),
        ({"statuses": [completed]}, made),
        ({"statuses": [running]}, [held]),
        ({"statuses": [completed, running]}, [*made, held]),
        ({"statuses": [turn_pb2.TURN_STATUS_FAILED]}, []),
    ):
        for page_size in (1, 2, 3, 4, 100):
            request = turn_service_pb2.ListTurnsRequest(page_size=page_size, **fields, **talk.keys)
            found: list[str] = []
            while True:
                page = await hansard.turns.ListTurns(request)
                assert len(page.turns) <= page_size
                found += [turn.id for turn in page.turns]
                request.page_token = page.next_page_token
                if not request.page_token:
                    break
            assert found == ids
    await talk.release(held)


async def test_page_of_turns_ends_by_its_bytes(hansard: Running) -> None:
    talk = await Talk(hansard).begin([{"agent_output": {"content": "ok"}}])
    for _ in range(4):
        await talk.send("x" * (MIB - 1_000))
    first = await hansard.turns.ListTurns(turn_service_pb2.ListTurnsRequest(**talk.keys))
    assert (len(first.turns), first.ByteSize() <= PAGE_MAX_BYTES) == (3, True)
    rest = turn_service_pb2.ListTurnsRequest(page_token=first.next_page_token, **talk.keys)
    assert len((await hansard.turns.ListTurns(rest)).turns) == 1


async def test_hard_patterns_leave_readers_to_others(hansard: Running) -> None:
    await hansard.agents.CreateAgent(agent_request(key="a"))
    long = {"name": "a" * 255, "description": "b" * 4_096}
    for _ in range(120):
        await hansard.sessions.CreateSession(Create(agent_key="a", **long))
    hard = ListSessions(agent_key="a", filter="(b{1,30}){1,30}c")
    page = await hansard.sessions.ListSessions(hard)
    assert (len(page.sessions), bool(page.next_page_token)) == (0, True)
    lists = [asyncio.ensure_future(hansard.sessions.ListSessions(hard)) for _ in range(16)]
    async with asyncio.timeout(30):
        while hansard.server._calls.running < len(lists):
            assert not any(call.done() for call in lists)
            await asyncio.sleep(0.001)
    await hansard.agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_key="a"))
    # In line with them it would be the last.
    assert sum(call.done() for call in lists) <= len(lists) // 2
    await asyncio.gather(*lists)


@pytest.mark.parametrize("pattern", ["(", "[", "(?=x)", "\\1", "(x{1000}){1000}", "\\pL{900}"])
async def test_bad_pattern_is_refused(plain: Running, pattern: str) -> None:
    refused = await failure(plain.agents.ListAgents(ListAgents(filter=pattern)))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ("filter",))


async def test_token_is_bound_to_its_query(hansard: Running) -> None:
    await make_sessions(hansard, 3)
    await hansard.agents.CreateAgent(agent_request(key="b"))
    request = ListSessions(agent_key="a", page_size=1, metadata={})
    token = (await hansard.sessions.ListSessions(request)).next_page_token
    assert token

    async def refused(**changes: object) -> Failure:
        other = ListSessions(agent_key="a", page_size=1, metadata={}, page_token=token)
        other.MergeFrom(ListSessions(**changes))
        return await failure(hansard.sessions.ListSessions(other))

    flipped = token[:-1] + ("A" if token[-1] != "A" else "Q")
    for changes in (
        {"filter": "x"},
        {"enabled": False},
        {"order": 1},
        {"metadata": {"a": 1}},
        {"agent_key": "b"},
        {"created_before": Timestamp(seconds=1)},
        {"page_token": flipped},
        {"page_token": token + "A"},
        {"page_token": token + "="},
        {"page_token": token[1:]},
        {"page_token": "x"},
        {"page_token": "é"},
        {"page_token": base64.b64encode(b"\x01" * 40).decode()},
    ):
        answer = await refused(**changes)
        assert (answer.reason, answer.fields) == ("INVALID_PAGE_TOKEN", ("page_token",)), changes
    foreign = await failure(hansard.agents.ListAgents(ListAgents(page_token=token)))
    assert foreign.reason == "INVALID_PAGE_TOKEN"


async def test_token_is_bound_to_its_tenant(
    plain: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a", "b"):
        await plain.agents.CreateAgent(agent_request(key=key))
    token = (await plain.agents.ListAgents(ListAgents(page_size=1))).next_page_token
    monkeypatch.setattr("hansard_server.servicers.entrance.EVERYBODY", STRANGER)
    assert not (await plain.agents.ListAgents(ListAgents())).agents
    refused = await failure(plain.agents.ListAgents(ListAgents(page_token=token)))
    assert refused.reason == "INVALID_PAGE_TOKEN"


async def test_token_outlives_the_server_and_is_shared_by_replicas(
    databases: Databases, tmp_path: Path
) -> None:
    secret = {"page_token_secret": "0123456789abcdef"}
    url = databases.migrated("sqlite")
    for changes, shared in (({}, False), (secret, True)):
        async with running_server(make_settings(tmp_path / "1", url, **changes)) as one:
            keys = {agent.key for agent in (await one.agents.ListAgents(ListAgents())).agents}
            for key in {"a", "b"} - keys:
                await one.agents.CreateAgent(agent_request(key=key))
            token = (await one.agents.ListAgents(ListAgents(page_size=1))).next_page_token
        async with running_server(make_settings(tmp_path / "1", url, **changes)) as again:
            assert (await again.agents.ListAgents(ListAgents(page_token=token))).agents
        async with running_server(make_settings(tmp_path / "2", url, **changes)) as other:
            call = other.agents.ListAgents(ListAgents(page_token=token))
            if shared:
                assert (await call).agents
            else:
                assert (await failure(call)).reason == "INVALID_PAGE_TOKEN"
    assert (tmp_path / "1" / "page-token.key").stat().st_mode & 0o777 == 0o600


async def test_agent_of_another_tenant_is_not_found(
    plain: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_sessions(plain, 1)
    monkeypatch.setattr("hansard_server.servicers.entrance.EVERYBODY", STRANGER)
    for call in (
        plain.agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_key="a")),
        plain.agents.DeleteAgent(agent_service_pb2.DeleteAgentRequest(agent_key="a")),
        plain.agents.UpdateAgent(
            agent_service_pb2.UpdateAgentRequest(
                agent=agent_pb2.Agent(key="a", name="x"), update_mask={"paths": ["name"]}
            )
        ),
        plain.sessions.ListSessions(ListSessions(agent_key="a")),
        plain.sessions.CreateSession(Create(agent_key="a", name="x")),
    ):
        assert (await failure(call)).reason == "AGENT_NOT_FOUND"
