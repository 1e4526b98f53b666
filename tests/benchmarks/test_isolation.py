"""The time of what another tenant has, against the time of what never was; and what a key costs."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from hansard_server.access.authentication import Authenticator
from hansard_server.access.credentials import Tokens
from hansard_server.access.key_cache import KeyCache
from hansard_server.access.tenants import make_tenant
from hansard_server.domain.clock import now_us
from hansard_server.repository.sql.store import SqlStore
from tests.benchmarks.processes import serve
from tests.support.access import (
    Metadata,
    Place,
    Role,
    make_agent,
    make_key,
    make_place,
    read_admin_key,
    request_of,
    with_key,
)
from tests.support.server import open_channel

PAIRS = 1_000
FASTEST, SLOWEST = 0.8, 1.2
CALLS = (
    *("AgentService/GetAgent", "AgentService/UpdateAgent", "SessionService/GetSession"),
    *("EventService/ListEvents", "EventService/AppendEvents", "EventService/HideEvent"),
    *("EventService/GetEvent", "TurnService/GetTurn", "ArtifactService/GetArtifact"),
    "AccessService/RevokeApiKey",
)


@dataclass(frozen=True)
class Tenants:
    """A server, what another tenant has, and keys of the caller's tenant."""

    channel: grpc.Channel
    theirs: Place
    callers: dict[str, Metadata]


@pytest.fixture(scope="module")
def tenants(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    """Give a server with two tenants."""
    folder = tmp_path_factory.mktemp("isolation")
    with serve(folder, store_url, insecure=False) as served:
        theirs, callers = asyncio.run(_fill(store_url, folder / "data", served.address))
        with grpc.insecure_channel(served.address) as channel:
            yield Tenants(channel, theirs, callers)


async def _fill(url: str, data_dir: Path, address: str) -> tuple[Place, dict[str, Metadata]]:
    store = await SqlStore.open(url)
    key = await make_tenant(store, "strangers", clock=now_us)
    await store.close()
    assert key is not None
    async with open_channel(address) as channel:
        admin, stranger = with_key(read_admin_key(data_dir)), with_key(key)
        await make_agent(channel, admin, "ours")
        await make_agent(channel, stranger, "their")
        theirs = await make_place(channel, stranger, "their", "their-session")
        user = await make_key(channel, admin, (Role.ROLE_AGENT_DEVELOPER, "ours"))
    return theirs, {"administrator": admin, "agent_developer": with_key(user.secret)}


def never(place: Place, letter: str) -> Place:
    """Return a place that never was, all its names as long as those of the other."""
    return Place(
        agent_key=letter * 5,
        session_key=f"{letter * 5}-session",
        **{
            name: getattr(place, name)[:4] + letter * (len(getattr(place, name)) - 4)
            for name in ("event_id", "turn_id", "artifact_id", "api_key_id")
        },
    )


@pytest.mark.parametrize("role", ["administrator", "agent_developer"])
def test_what_another_tenant_has_takes_the_time_of_what_never_was(
    tenants: Tenants, role: str
) -> None:
    by = tenants.callers[role]
    absent, absent_too = never(tenants.theirs, "a"), never(tenants.theirs, "b")
    slow = []
    for call in CALLS:
        if call.startswith("Access") and role != "administrator":
            continue
        asked = {
            name: _caller(tenants.channel, call, request_of(f"/hansard.v1.{call}", place), by)
            for name, place in (
                *(("theirs", tenants.theirs), ("never", absent), ("never too", absent_too)),
            )
        }
        medians = _interleaved(asked)
        ratio = medians["theirs"] / medians["never"]
        control = medians["never too"] / medians["never"]
        sys.stdout.write(
            f"{role} {call}: {medians['never'] * 1e6:.0f} us, theirs {ratio:.3f},"
            f" the same again {control:.3f}\n"
        )
        if not FASTEST < ratio < SLOWEST:
            slow.append((call, ratio, control))
    assert not slow


def _caller(
    channel: grpc.Channel, call: str, request: Message | list[Message], by: Metadata
) -> Callable[[], None]:
    assert isinstance(request, Message)
    stub: Any = channel.unary_unary(f"/hansard.v1.{call}")
    raw, metadata = request.SerializeToString(), tuple(by)

    def ask() -> None:
        with pytest.raises(grpc.RpcError) as raised:
            stub(raw, metadata=metadata)
        error: Any = raised.value
        assert error.code() is grpc.StatusCode.NOT_FOUND, error

    return ask


def _interleaved(asked: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Return the median time of each, asked in turn, each time in another order."""
    times: dict[str, list[float]] = {name: [] for name in asked}
    order = list(asked)
    shuffled = random.Random(7)
    for _ in range(PAIRS):
        shuffled.shuffle(order)
        for name in order:
            started = time.perf_counter()
            asked[name]()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


async def test_a_key_in_use_costs_microseconds(store_url: str) -> None:
    store = await SqlStore.open(store_url)
    key = await make_tenant(store, "of-the-cost", clock=now_us)
    assert key is not None
    authenticator = Authenticator(
        KeyCache(store, ttl_s=600, clock=now_us), Tokens(b"s" * 32), clock=now_us
    )
    identity = await authenticator.identify(with_key(key))
    token = Tokens(b"s" * 32).sign(identity.caller.key_id, 4_000_000_000)
    for name, metadata in (("key", with_key(key)), ("token", with_key(token))):
        # As long as a call's usually are.
        sent = (("user-agent", "x" * 40), ("x-request-id", "y" * 16), *metadata)
        rounds = []
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(500):
                await authenticator.identify(sent)
            rounds.append((time.perf_counter() - started) / 500)
        sys.stdout.write(f"{name}: {min(rounds) * 1e6:.1f} us\n")
        assert min(rounds) < 50e-6
    await store.close()
