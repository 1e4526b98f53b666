"""Every call, by every role, on what is the caller's own, another agent's and another tenant's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hansard.v1 import (
    access_pb2,
    access_service_pb2,
    agent_pb2,
    agent_service_pb2,
    paging_pb2,
    session_service_pb2,
)
from hansard_server.access.tenants import make_tenant
from hansard_server.domain.clock import now_us
from hansard_server.repository.sql.store import SqlStore
from tests.support.access import (
    CALLS,
    REQUESTS,
    ROLES,
    Metadata,
    Place,
    Role,
    make,
    make_about,
    make_agent,
    make_key,
    make_place,
    read_admin_key,
    with_key,
)
from tests.support.invariants import check_store
from tests.support.server import Running, make_settings, running_server

ADMINISTRATOR = "administrator"
A, D, V, U = ROLES
# Who may make each call on an agent, in the words of the contract: not taken from the code's table.
ALLOWED: dict[str, set[str]] = {
    "AgentService/GetAgent": {A, D, V, U},
    "AgentService/UpdateAgent": {A, D},
    "AgentService/DeleteAgent": {A},
    "SessionService/CreateSession": {A, D, U},
    "SessionService/GetSession": {A, D, V, U},
    "SessionService/ListSessions": {A, D, V, U},
    "SessionService/UpdateSession": {A, D},
    "SessionService/DeleteSession": {A, D},
    "EventService/SendEvent": {A, D, U},
    "EventService/AppendEvents": {A, D},
    "EventService/GetEvent": {A, D, V, U},
    "EventService/ListEvents": {A, D, V, U},
    "EventService/WatchEvents": {A, D, V, U},
    "EventService/HideEvent": {A, D},
    "EventService/UnhideEvent": {A, D},
    "EventService/DeleteEvent": {A, D},
    "TurnService/GetTurn": {A, D, V, U},
    "TurnService/ListTurns": {A, D, V, U},
    "TurnService/CancelTurn": {A, D, U},
    "ArtifactService/UploadArtifacts": {A, D, U},
    "ArtifactService/GetArtifact": {A, D, V, U},
    "ArtifactService/ListArtifacts": {A, D, V, U},
    "ArtifactService/DownloadArtifact": {A, D, V, U},
    "ArtifactService/DeleteArtifact": {A, D},
}
# All of the tenant's corpora, for whoever has one of these roles on some agent.
CORPORA: dict[str, set[str]] = {
    "CorpusService/GetCorpus": {A, D, V},
    "CorpusService/DeleteCorpus": set(),
    "CorpusService/IndexDocument": set(),
    "CorpusService/ListDocuments": {A, D, V},
    "CorpusService/DeleteDocument": set(),
    "CorpusService/SearchCorpora": {A, D, V},
}
# Not about one agent: reason for (a role on agents, own, another agent's, another tenant's).
CREATE_KEY, REVOKE_KEY = "AccessService/CreateApiKey", "AccessService/RevokeApiKey"
OF_THE_TENANT: dict[str, set[str]] = {
    "AgentService/CreateAgent": set(),
    "AgentService/ListAgents": {A, D, V, U},
    "CorpusService/CreateCorpus": set(),
    "CorpusService/ListCorpora": {A, D, V},
    "AccessService/ListApiKeys": {A},
    "AccessService/IssueToken": {A, D, V, U},
}
# After these the place is not what it was.
SPENT = {
    *("AgentService/DeleteAgent", "SessionService/DeleteSession", "EventService/DeleteEvent"),
    *("ArtifactService/DeleteArtifact", "EventService/SendEvent", REVOKE_KEY),
    *("CorpusService/DeleteCorpus", "CorpusService/DeleteDocument"),
}


def expected(call: str, role: str, whose: str) -> str:
    """Return the reason that the contract has for the call."""
    everything = role == ADMINISTRATOR
    if call in OF_THE_TENANT:
        return "OK" if everything or role in OF_THE_TENANT[call] else "FORBIDDEN"
    if call in CORPORA and (everything or role in CORPORA[call]):
        return "CORPUS_NOT_FOUND" if whose == "another tenant's" else "OK"
    if call in CORPORA or (call in {CREATE_KEY, REVOKE_KEY} and not everything and role != A):
        return "FORBIDDEN"
    mine = whose == "own" or (everything and whose == "another agent's")
    if call == REVOKE_KEY:
        return "OK" if mine else "API_KEY_NOT_FOUND"
    if whose == "another tenant's":
        return "AGENT_NOT_FOUND"
    allowed = everything or role in ALLOWED.get(call, {A})
    return "OK" if mine and allowed else "FORBIDDEN"


@dataclass
class World:
    """A server with two tenants, and who calls it.

    Attributes:
        admin: the administrator of the tenant of all roles.
        stranger: the administrator of the other tenant.
        callers: by role.
    """

    running: Running
    admin: Metadata
    stranger: Metadata
    callers: dict[str, Metadata]
    made: int = 0

    async def place(self, whose: str, role: str, *, fresh: bool) -> Place:
        """Return a place; a fresh one is nobody else's."""
        theirs = whose == "another tenant's"
        agent = {"own": f"own_{role}", "another tenant's": "theirs"}.get(whose, "other")
        self.made += fresh
        session = f"fresh_{self.made}" if fresh else "s"
        by = self.stranger if theirs else self.admin
        key = (agent, session)
        if key not in self._places:
            self._places[key] = await make_place(self.running.channel, by, agent, session)
        return self._places[key]

    def __post_init__(self) -> None:
        self._places: dict[tuple[str, str], Place] = {}

    async def look(self, by: Metadata, agent: str) -> list[Any]:
        """Return what there is of an agent and its first session."""
        calls = (
            *("AgentService/GetAgent", "SessionService/ListSessions", "EventService/ListEvents"),
            *("ArtifactService/ListArtifacts", "TurnService/ListTurns"),
        )
        return [
            (await make_about(self.running.channel, f"/hansard.v1.{call}", Place(agent), by)).reply
            for call in calls
        ]


@pytest.fixture
async def world(store_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """Give a world in which each role is on an agent of its own."""
    store = await SqlStore.open(store_url)
    stranger = await make_tenant(store, "strangers", clock=now_us)
    await store.close()
    assert stranger is not None
    settings = make_settings(tmp_path / "data", store_url, insecure=False)
    async with running_server(settings) as running:
        channel = running.channel
        admin = with_key(read_admin_key(tmp_path / "data"))
        world = World(running, admin, with_key(stranger), {ADMINISTRATOR: admin})
        await make_agent(channel, world.stranger, "theirs")
        for agent in ("other", f"own_{ADMINISTRATOR}"):
            await make_agent(channel, admin, agent)
        for role, number in ROLES.items():
            await make_agent(channel, admin, f"own_{role}")
            key = await make_key(channel, admin, (number, f"own_{role}"))
            world.callers[role] = with_key(key.secret)
        yield world
    check_store(store_url)


def test_every_call_has_a_request() -> None:
    assert {f"/hansard.v1.{call}" for call in REQUESTS} == set(CALLS)
    assert {*ALLOWED, *CORPORA, *OF_THE_TENANT, CREATE_KEY, REVOKE_KEY} == set(REQUESTS)


async def test_every_call_by_every_role_on_everything(world: World, record_property: Any) -> None:
    await world.place("another tenant's", "", fresh=False)
    await world.place("another agent's", "", fresh=False)
    theirs = await world.look(world.stranger, "theirs")
    other = await world.look(world.admin, "other")
    cases = 0
    # The administrator may do everything to `other`: last, so that one sees that nobody else did.
    for role in (*ROLES, ADMINISTRATOR):
        if role == ADMINISTRATOR:
            assert await world.look(world.admin, "other") == other
        # An agent is deleted when all else was tried.
        for call in sorted(REQUESTS, key=lambda call: call == "AgentService/DeleteAgent"):
            for whose in ("another tenant's", "own", "another agent's"):
                wanted = expected(call, role, whose)
                fresh = call in SPENT and wanted == "OK"
                place = await world.place(whose, role, fresh=fresh)
                method = f"/hansard.v1.{call}"
                got = await make_about(world.running.channel, method, place, world.callers[role])
                assert got.reason == wanted, (call, role, whose, got)
                cases += 1
    assert await world.look(world.stranger, "theirs") == theirs
    record_property("cases", cases)
    assert cases == len(REQUESTS) * 5 * 3


async def test_nobody_is_let_in_without_a_key(world: World) -> None:
    refused = [await make_about(world.running.channel, call, Place("other"), ()) for call in CALLS]
    assert {got.reason for got in refused} == {"UNAUTHORIZED"}
    assert {got.code for got in refused} == {grpc.StatusCode.UNAUTHENTICATED}
    assert len({got.words for got in refused}) == len({got.details for got in refused}) == 1


async def listed(world: World, by: Metadata, **fields: Any) -> list[agent_pb2.Agent]:
    request = agent_service_pb2.ListAgentsRequest(**fields)
    got = await make(world.running.channel, "/hansard.v1.AgentService/ListAgents", request, by)
    assert got.reason == "OK", got
    return list(agent_service_pb2.ListAgentsResponse.FromString(got.reply).agents)


async def test_lists_show_what_the_caller_may_see(world: World) -> None:
    for role in ROLES:
        assert [agent.key for agent in await listed(world, world.callers[role])] == [f"own_{role}"]
    everything = {"other", "own_administrator", *(f"own_{role}" for role in ROLES)}
    assert {agent.key for agent in await listed(world, world.admin)} == everything
    assert {agent.key for agent in await listed(world, world.stranger)} == {"theirs"}


async def test_pages_of_a_caller_with_roles_on_some_agents(world: World) -> None:
    channel = world.running.channel
    grants = [(ROLES[U], f"own_{role}") for role in ROLES]
    by = with_key((await make_key(channel, world.admin, *grants)).secret)
    for order in (1, 2):
        seen: list[str] = []
        token = ""
        while True:
            request = agent_service_pb2.ListAgentsRequest(
                page_size=1, page_token=token, order=paging_pb2.SortOrder.ValueType(order)
            )
            got = await make(channel, "/hansard.v1.AgentService/ListAgents", request, by)
            page = agent_service_pb2.ListAgentsResponse.FromString(got.reply)
            seen += [agent.key for agent in page.agents]
            token = page.next_page_token
            if not token:
                break
        made = [f"own_{role}" for role in ROLES]
        assert seen == (made if order == 1 else made[::-1])


async def test_agent_user_sees_no_configuration(world: World) -> None:
    channel, by = world.running.channel, world.callers[U]
    got = await make_about(channel, "/hansard.v1.AgentService/GetAgent", Place(f"own_{U}"), by)
    agent = agent_pb2.Agent.FromString(got.reply)
    assert (agent.name, agent.description, agent.enabled) == (f"Agent own_{U}", "Says yes.", True)
    assert not agent.HasField("model")
    assert not agent.HasField("first_step")
    assert not agent.tool_configurations
    assert not agent.metadata.fields
    assert not agent.etag
    assert await listed(world, by) == [agent]
    # What can't be seen can't be asked for either.
    hidden = {"secret": "of the agent"}
    assert await listed(world, by, metadata=hidden) == []
    assert len(await listed(world, world.callers[V], metadata=hidden)) == 1


async def test_fork_needs_roles_on_both_agents(world: World) -> None:
    source = await world.place("another agent's", "", fresh=False)
    request = session_service_pb2.CreateSessionRequest(
        agent_key=f"own_{D}",
        name="Fork",
        from_session={"agent_key": source.agent_key, "session_key": source.session_key},
    )
    call = "/hansard.v1.SessionService/CreateSession"
    got = await make(world.running.channel, call, request, world.callers[D])
    assert got.reason == "FORBIDDEN"
    request.from_session.agent_key = "theirs"
    got = await make(world.running.channel, call, request, world.callers[D])
    assert got.reason == "AGENT_NOT_FOUND"


async def test_nobody_gives_what_he_has_not(world: World) -> None:
    channel = world.running.channel
    for grants in ([(1, "")], [(ROLES[A], f"own_{A}"), (ROLES[V], "other")]):
        asked = [
            access_pb2.RoleGrant(role=Role.ValueType(role), agent_key=agent)
            for role, agent in grants
        ]
        request = access_service_pb2.CreateApiKeyRequest(name="More", roles=asked)
        call = "/hansard.v1.AccessService/CreateApiKey"
        got = await make(channel, call, request, world.callers[A])
        assert got.reason == "FORBIDDEN"
    made = await make_key(channel, world.callers[A], (ROLES[U], f"own_{A}"))
    listing = await make(
        channel,
        "/hansard.v1.AccessService/ListApiKeys",
        access_service_pb2.ListApiKeysRequest(),
        world.callers[A],
    )
    keys = access_service_pb2.ListApiKeysResponse.FromString(listing.reply).api_keys
    assert made.id in {key.id for key in keys}
    assert {grant.agent_key for key in keys for grant in key.roles} == {f"own_{A}"}
    assert not any(key.secret for key in keys)
