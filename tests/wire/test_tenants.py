"""A key of one tenant with every id of another: the words are, byte for byte, those of ids that
never were.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from hansard.v1 import agent_service_pb2, event_service_pb2
from hansard_server.access.tenants import make_tenant
from hansard_server.domain.clock import now_us
from hansard_server.repository.sql.store import SqlStore
from tests.support.access import (
    CALLS,
    Metadata,
    Outcome,
    Place,
    make,
    make_agent,
    make_place,
    read_admin_key,
    request_of,
    with_key,
)
from tests.support.server import Running, make_settings, running_server

IDS = ("event_id", "turn_id", "artifact_id", "api_key_id", "document_id")


@dataclass
class TwoTenants:
    """A server, and what each of two tenants has: an agent and a session of the same keys, too.

    Attributes:
        ours: a place of the caller's tenant.
        theirs: a place of the other.
        by: the administrator of the caller's tenant.
        stranger: the administrator of the other.
    """

    running: Running
    ours: Place
    theirs: Place
    by: Metadata
    stranger: Metadata

    async def make(self, call: str, request: Message | list[Message]) -> Outcome:
        return await make(self.running.channel, call, request, self.by)


@pytest.fixture
async def two(store_url: str, tmp_path: Path) -> AsyncIterator[TwoTenants]:
    store = await SqlStore.open(store_url)
    key = await make_tenant(store, "strangers", clock=now_us)
    await store.close()
    assert key is not None
    settings = make_settings(tmp_path / "data", store_url, insecure=False)
    async with running_server(settings) as running:
        by, stranger = with_key(read_admin_key(tmp_path / "data")), with_key(key)
        await make_agent(running.channel, by, "ours1")
        await make_agent(running.channel, stranger, "their")
        yield TwoTenants(
            running,
            ours=await make_place(running.channel, by, "ours1", "s"),
            theirs=await make_place(running.channel, stranger, "their", "their-session"),
            by=by,
            stranger=stranger,
        )


def never(name: str) -> str:
    """Return an id of the same form that never was."""
    return name[:4] + "a" * (len(name) - 4)


def mixtures(two: TwoTenants) -> list[tuple[Place, Place]]:
    """Return pairs of places: names of the other tenant, and in their stead names that never were.

    In each pair one name, or all of them, is the other tenant's; the rest is the caller's own.
    """
    absent = {
        "agent_key": "never",
        "session_key": "never-session",
        "corpus_key": "corpus_never_never-session",
        **{name: never(getattr(two.theirs, name)) for name in IDS},
    }
    pairs = [(two.theirs, Place(**absent))]
    pairs += [
        (
            replace(two.ours, **{name: getattr(two.theirs, name)}),
            replace(two.ours, **{name: none}),
        )
        for name, none in absent.items()
    ]
    return pairs


def as_if(got: Outcome, place: Place, other: Place) -> Outcome:
    """Return how the call went, with the names of the other place where it repeats the place's."""
    words, details = got.words, got.details
    for field in fields(Place):
        here, there = getattr(place, field.name), getattr(other, field.name)
        assert len(here) == len(there)
        words = words.replace(here, there)
        details = details.replace(here.encode(), there.encode())
    return replace(got, words=words, details=details)


def named(call: str, place: Place, base: Place) -> bool:
    """Tell whether the call's request names what differs between the places."""
    return request_of(call, place) != request_of(call, base)


async def test_ids_of_another_tenant_are_as_if_they_had_never_been(two: TwoTenants) -> None:
    compared = 0
    for call in CALLS:
        for theirs, none in mixtures(two):
            if not named(call, theirs, two.ours):
                continue
            there = await two.make(call, request_of(call, theirs))
            absent = await two.make(call, request_of(call, none))
            assert there.reason.endswith("_NOT_FOUND"), (call, theirs, there)
            assert as_if(there, theirs, none) == absent, (call, theirs)
            compared += 1
    assert compared > len(CALLS)


async def test_session_uid_of_another_tenant_is_as_if_it_had_never_been(two: TwoTenants) -> None:
    listed = event_service_pb2.ListEventsRequest(**two.theirs.session)
    call = "/hansard.v1.EventService/WatchEvents"
    watched = await make(
        two.running.channel,
        call,
        event_service_pb2.WatchEventsRequest(**two.theirs.session),
        two.stranger,
    )
    uid = event_service_pb2.WatchEventsResponse.FromString(watched.reply).session_uid
    assert uid
    outcomes = []
    for given in (uid, never(uid)):
        listed = event_service_pb2.ListEventsRequest(**two.ours.session, session_uid=given)
        outcomes.append(await two.make("/hansard.v1.EventService/ListEvents", listed))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].reason == "SESSION_NOT_FOUND"


async def test_request_ids_and_page_tokens_are_each_tenants_own(two: TwoTenants) -> None:
    channel = two.running.channel
    call = "/hansard.v1.AgentService/CreateAgent"
    request: Any = request_of(call, two.ours)
    request.request_id = "the-same"
    ours = await make(channel, call, request, two.by)
    request.name = "Another content"
    theirs = await make(channel, call, request, two.stranger)
    assert (ours.reason, theirs.reason) == ("OK", "OK")
    call = "/hansard.v1.AgentService/ListAgents"
    page = await make(channel, call, agent_service_pb2.ListAgentsRequest(page_size=1), two.stranger)
    token = agent_service_pb2.ListAgentsResponse.FromString(page.reply).next_page_token
    assert token
    foreign = await two.make(
        call, agent_service_pb2.ListAgentsRequest(page_size=1, page_token=token)
    )
    forged = await two.make(
        call, agent_service_pb2.ListAgentsRequest(page_size=1, page_token=token[::-1])
    )
    assert foreign == forged
    assert foreign.reason == "INVALID_PAGE_TOKEN"


async def test_the_same_keys_in_two_tenants_are_two_things(two: TwoTenants) -> None:
    channel = two.running.channel
    await make_agent(channel, two.by, "both")
    await make_agent(channel, two.stranger, "both")
    place = await make_place(channel, two.by, "both", "s")
    call = "/hansard.v1.SessionService/GetSession"
    got = await make(channel, call, request_of(call, place), two.stranger)
    assert got.reason == "SESSION_NOT_FOUND"
    call = "/hansard.v1.AgentService/DeleteAgent"
    assert (await make(channel, call, request_of(call, place), two.stranger)).reason == "OK"
    call = "/hansard.v1.SessionService/GetSession"
    assert (await make(channel, call, request_of(call, place), two.by)).reason == "OK"
